"""Full depth: a small model with random weights, and everything that has to hold of what the plan calls safe.

All in float64 and eval mode, without calibration data, so without projections. Each check has an outcome: ``ok``, ``-``
with a reason where it does not apply, or the first line of what went wrong.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.graph import Cut
from layerprune.modules import fingerprint
from layerprune.plan import PruningPlan
from menagerie.compare import TOLERANCE, check_form, copies, distance, rounding, run
from menagerie.entry import Batch, Entry, NoVariant
from menagerie.numbers import numbers
from menagerie.outcomes import OK, Wrong, first_line, is_fine, not_applicable, of_error
from menagerie.planning import CAP, Stage
from menagerie.weights import calibrate, randomise, state_of
from oracle.simulation import simulate, tensors, union

CHECKS = ("plan", "alone", "prune", "eval", "oracle", "train", "params", "untouched", "replay")
NUM_ALONE = 5
_MOVED = 1e-7
_PLANNED, _FRESH, _OTHER = 2, 3, 1  # batch sizes: what the pruner sees, what outputs are compared on, one more


def check_full(entry: Entry, at: Stage = lambda stage: None) -> dict[str, Any]:
    """Build, plan, prune, run, train, save and load one model.

    Args:
        entry: an architecture with ``full`` and ``inputs``.
        at: told which check is being made.

    Returns:
        A row: ``outcome`` is ``ok``, ``failed: <checks>`` or ``not built: …``; ``checks`` holds each one's outcome.
    """
    at("build")
    try:
        subject = Subject(entry)
    except Exception as error:  # of the architecture's own making: it does not run as the entry builds it
        return {"outcome": f"not built: {type(error).__name__}: {first_line(error)}"}
    row: dict[str, Any] = {}
    steps: dict[str, Callable[[], str | None]] = {
        "plan": lambda: subject.plan(row),
        "prune": lambda: subject.prune(row),
        "untouched": subject.untouched,
        "params": subject.params,
        "alone": lambda: subject.alone(row),
        "eval": lambda: subject.eval(row),
        "oracle": subject.oracle,
        "replay": subject.replay,
        "train": subject.train,
    }
    outcomes: dict[str, str] = {}
    for check, step in steps.items():
        at(check)
        needed = [] if check == "plan" else ["plan"] if check in ("prune", "alone") else ["plan", "prune"]
        failed = next((name for name in needed if outcomes[name] != OK), None)
        try:
            outcomes[check] = not_applicable(f"{failed} failed") if failed else step() or OK
        except Exception as error:  # what a check raises is its outcome
            outcomes[check] = of_error(error)
    if outcomes["plan"] != OK:
        return {**row, "outcome": outcomes["plan"], "checks": outcomes}
    failures = [check for check in CHECKS if not is_fine(outcomes[check])]
    row["outcome"] = f"failed: {', '.join(failures)}" if failures else OK
    return {**row, "checks": {check: outcomes[check] for check in CHECKS}}


@dataclass
class Subject:
    """One model under test; the steps are called in the order in which :func:`check_full` lists them."""

    entry: Entry
    model: nn.Module = field(init=False)
    fresh: Batch = field(init=False)
    pruner: UniversalLayerPruner = field(init=False)
    planned: PruningPlan = field(init=False)
    pruned: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.build(seed=0)
        randomise(self.model, seed=0)
        calibrate(self.model, self.inputs(_FRESH, 0))
        self.fresh = self.inputs(_FRESH, 0)
        self.original = run(self.model, self.fresh)
        self.second = self.other_size()
        self.example = self.inputs(_PLANNED, 0)  # may run the model to find what it takes
        self.tolerances: dict[int, float] = {}
        self.before = state_of(self.model)
        self.tensors_before = state_of(self.model, values=False)

    def build(self, seed: int) -> nn.Module:
        assert self.entry.full is not None
        torch.manual_seed(seed)
        return self.entry.full().double().eval()

    def inputs(self, batch: int, variant: int) -> Batch:
        assert self.entry.inputs is not None
        torch.manual_seed(batch)
        return self.entry.inputs(self.model, batch, variant)

    def other_size(self) -> Batch | str:
        """Inputs of another size or length, or why there are none."""
        try:
            second = self.inputs(_PLANNED, 1)
            run(self.model, second)
        except NoVariant as error:
            return first_line(error)
        except Exception as error:  # of the model's own: it takes one size only
            return f"the original takes no other size: {first_line(error)}"
        return second

    # ---- the library's work ---------------------------------------------------------------------------------------

    def plan(self, row: dict[str, Any]) -> None:
        args, kwargs = self.example
        seen = torch.get_rng_state()
        example = kwargs if kwargs and not args else args
        self.pruner = UniversalLayerPruner(self.model, example_inputs=example, projections=False)
        row |= numbers(self.pruner)
        self.pruner.render_plan()
        self.by_name = {removal.name: removal for removal in self.pruner.removals}
        if len(self.by_name) != len(self.pruner.removals):
            twice = Counter(removal.name for removal in self.pruner.removals).most_common(1)[0][0]
            raise Wrong(f"two removals are called '{twice}'")
        if not torch.equal(seen, torch.get_rng_state()):
            raise Wrong("planning has changed the RNG state")

    def prune(self, row: dict[str, Any]) -> None:
        seen = torch.get_rng_state()
        self.planned = self.pruner.plan(max_param_reduction=CAP)
        self.pruned = self.pruner.prune(plan=self.planned)  # what prune(max_param_reduction=CAP) does next
        before, after = num_params(self.model), num_params(self.pruned)
        row["removed"] = 1 - after / before
        if before - after > round(CAP * before, 6):  # in whole parameters: a share of exactly the cap may round up
            raise Wrong(f"{row['removed']:.2%} of the parameters are gone, of at most {CAP:.0%}")
        if not torch.equal(seen, torch.get_rng_state()):
            raise Wrong("pruning has changed the RNG state")
        if type(self.pruned) is not type(self.model):
            raise Wrong(f"the pruned model is a {type(self.pruned).__name__}")

    # ---- what has to hold -----------------------------------------------------------------------------------------

    def untouched(self) -> None:
        """The model's tensors, modes, hooks and attributes are what they were; called before it runs again."""
        _check_same(self.before, state_of(self.model))

    def params(self) -> None:
        found = num_params(self.pruned)
        if found != self.planned.num_params_after:
            raise Wrong(f"{found:,} parameters are left, the plan says {self.planned.num_params_after:,}")
        renumbered = tuple(edit.fqn + "." for edit in self.planned.edits if edit.kind == "shorten")
        more = self.pruned.state_dict().keys() - self.model.state_dict().keys()
        if any(not key.startswith(renumbered) for key in more):
            raise Wrong(f"the pruned model has keys of its own: {', '.join(sorted(more)[:3])}")

    def alone(self, row: dict[str, Any]) -> str | None:
        """Random safe groups leave one at a time."""
        safe = [group.name for group in self.pruner.groups if group.can_remove]
        chosen = random.Random(self.entry.name).sample(safe, min(NUM_ALONE, len(safe)))
        row["alone"], row["moved"] = len(chosen), 0
        unverified = ""
        for name in chosen:
            try:
                row["moved"] += self.without(name)
            except Exception as error:
                outcome = of_error(error)
                if not outcome.startswith("unverified"):
                    return f"{outcome.partition(':')[0]}: without '{name}': {outcome.partition(':')[2].strip()}"
                unverified = outcome
        _check_same(self.tensors_before, state_of(self.model, values=False))
        return unverified or (None if chosen else not_applicable("no group is safe"))

    def without(self, name: str) -> bool:
        """Remove a group and compare with the simulation; returns whether that moves the output."""
        plan = self.pruner.plan(groups=[name])
        pruned = plan.apply(self.model)
        if num_params(pruned) != plan.num_params_after:
            raise Wrong(f"{num_params(pruned):,} parameters are left, the plan says {plan.num_params_after:,}")
        found = run(pruned, self.fresh)
        self.check_simulated(found, plan, self.fresh)
        return distance(found, self.original) > _MOVED

    def eval(self, row: dict[str, Any]) -> None:
        """The pruned model returns what the original does at several batch sizes, and another input size."""
        check_form(run(self.pruned, self.fresh), self.original)
        batches = [self.inputs(_OTHER, 0)]
        if isinstance(self.second, str):
            row["one_size"] = self.second
        else:
            batches.append(self.second)
        for batch in batches:
            check_form(run(self.pruned, batch), run(self.model, batch))

    def oracle(self) -> None:
        """The pruned model computes what the simulation does."""
        for batch in [self.fresh, *([] if isinstance(self.second, str) else [self.second])]:
            self.check_simulated(run(self.pruned, batch), self.planned, batch)

    def check_simulated(self, found: Any, plan: PruningPlan, batch: Batch) -> None:
        cut = self.cut(plan)
        torch.manual_seed(0)
        simulated = simulate(self.model, self.pruner.graph, cut, *copies(batch[0]), **copies(batch[1]))
        apart = distance(found, simulated)
        if apart <= TOLERANCE:
            return
        if id(batch) not in self.tolerances:
            self.tolerances[id(batch)] = rounding(self.model, batch)
        allowed = self.tolerances[id(batch)]
        if not apart <= allowed:
            raise Wrong(f"{apart:.1e} from the simulation (rounding moves the original by {allowed / 100:.1e})")

    def cut(self, plan: PruningPlan) -> Cut:
        return union(self.by_name[planned.name].cut for planned in plan.removals)

    def replay(self) -> None:
        """Weights saved, and loaded into a new model on which the plan was replayed, give the same bits."""
        expected = run(self.pruned, self.fresh)
        replayed = PruningPlan.from_json(self.planned.to_json())
        if replayed != self.planned:
            raise Wrong("the plan is another one once it was JSON")
        model = replayed.apply(self.rebuild(), inplace=True)
        if model.state_dict().keys() != self.pruned.state_dict().keys():
            odd = sorted(model.state_dict().keys() ^ self.pruned.state_dict().keys())
            raise Wrong(f"the replayed model has other keys: {', '.join(odd[:3])}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save_model(self.pruned, str(path))
            if self.loads_weights_only():
                load_model(model, path, strict=True)
            else:
                model.load_state_dict(self.pruned.state_dict())
        found = run(model, self.fresh)
        check_form(found, expected)
        apart = distance(found, expected)
        if apart > 0:
            raise Wrong(f"the replayed model's output is {apart:.1e} from the pruned model's")

    def loads_weights_only(self) -> bool:
        """Whether the original loads from tensors alone; some want the version that their own state dict carries."""
        try:
            self.build(seed=1).load_state_dict(dict(self.model.state_dict()))
        except ValueError:
            return False
        return True

    def rebuild(self) -> nn.Module:
        """A new model as the plan found the original, which had run: some exchange modules in their first forward."""
        model = self.build(seed=1)
        if fingerprint(model) != self.planned.fingerprint:
            run(model, self.fresh)
        return model

    def train(self) -> str | None:
        """The pruned model trains where the original does; called last, as it leaves gradients behind.

        In float32: whether a backward runs does not depend on the precision, and float64 is slow at it.
        """
        error = trains(self.build(seed=0).float(), single(self.fresh))
        if error is not None:
            return not_applicable(f"the original does not train: {type(error).__name__}: {first_line(error)}")
        error = trains(self.pruned.float(), single(self.fresh))
        if error is not None:
            raise error
        return None


def single(value: Any) -> Any:
    """Arguments in float32 that were in float64."""
    if isinstance(value, dict):
        return {key: single(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(single(item) for item in value)
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def trains(model: nn.Module, batch: Batch) -> Exception | None:
    """What a forward and backward in train mode raise; None if they run."""
    torch.manual_seed(0)
    try:
        returned: Sequence[Tensor] = list(tensors(model.train()(*copies(batch[0]), **copies(batch[1]))))
        losses = [t.abs().square().mean() for t in returned if t.requires_grad]
        if not losses:
            raise Wrong("no output depends on a parameter")
        torch.stack([loss.double() for loss in losses]).sum().backward()
    except Exception as error:  # whatever a model raises in train mode
        return error
    finally:
        model.eval()
    return None if any(p.grad is not None for p in model.parameters()) else Wrong("no parameter got a gradient")


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    if now != before:
        name = next(key for key in [*before, *now] if before.get(key) != now.get(key))
        raise Wrong(f"{name} of the original model has changed")
