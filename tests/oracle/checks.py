"""The checks that every removal and every plan must pass, whatever the model; see ``test_oracle.py``."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.channels import reader_for
from layerprune.edits import Edit, Fold, folds_of
from layerprune.plan import PruningPlan
from layerprune.proof import Removal
from layerprune.surgery import Folded, Projection, applied, folded, operate
from oracle.simulation import Explicit, simulate, tensors, union

MOVED = 1e-7  # a removal that moves the output by less than this tests nothing
TOLERANCE = 1e-10  # relative to the largest element of the output

#: The arguments of one forward call.
Batch: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class Oracle:
    """Checks removals and plans of one model.

    Args:
        model: in float64 and eval mode.
        example: what the pruner sees.
        fresh: other inputs, of another batch size: what outputs are compared on.
    """

    def __init__(self, model: nn.Module, example: Batch, fresh: Batch) -> None:
        self.model = model
        self.fresh = fresh
        self.before = _state(model)
        self.pruner = UniversalLayerPruner(model, example_inputs=example[1] or example[0])
        self.by_name = {removal.name: removal for removal in self.pruner.removals}
        assert len(self.by_name) == len(self.pruner.removals), "removals have names of their own"
        self.original = run(model, fresh)
        self.moved: Counter[str] = Counter()

    @property
    def checkable(self) -> list[Removal]:
        """The removals that can be simulated: where a forward makes what nobody reads, no projections.

        What is projected has another form, at which such layers may raise.
        """
        graph, removals = self.pruner.graph, self.pruner.removals
        return [r for r in removals if len(graph.live) == len(graph.layers) or not r.needs_calibration]

    def check_removal(self, removal: Removal) -> None:
        folded, explicit = any_projections(self.model, removal.edits)
        with applied(self.model, removal.edits, folded):
            assert num_params(self.model) == self.pruner.graph.num_params - removal.num_params, removal
            pruned = run(self.model, self.fresh)
        self.check_unchanged()
        self.check_output(pruned, [removal], explicit)

    def check_plan(self, plan: PruningPlan) -> None:
        pruned = PruningPlan.from_json(plan.to_json()).apply(self.model)
        self.check_unchanged()
        assert type(pruned) is type(self.model)
        assert num_params(pruned) == plan.num_params_after
        assert pruned.state_dict().keys() <= self.model.state_dict().keys()
        self.check_output(run(pruned, self.fresh), [self.by_name[planned.name] for planned in plan.removals])
        self.check_training(plan.edits)

    def check_training(self, edits: Sequence[Edit]) -> None:
        """A pruned model trains where the original does."""
        if _trains(copy.deepcopy(self.model), self.fresh) is None:
            pruned = copy.deepcopy(self.model)
            operate(pruned, edits)
            error = _trains(pruned, self.fresh)
            assert error is None, f"trains no more: {error}\n{edits}"

    def check_output(
        self, pruned: Any, removals: Sequence[Removal], explicit: Mapping[str, Explicit] | None = None
    ) -> None:
        cut = union(removal.cut for removal in removals)
        simulated = simulate(self.model, self.pruner.graph, cut, *self.fresh[0], projections=explicit, **self.fresh[1])
        apart = distance(pruned, simulated)
        assert apart <= TOLERANCE, f"{' and '.join(map(str, removals))}: {apart:.1e} from the simulation"
        self.moved.update(r.kind for r in removals if len(removals) == 1 and distance(simulated, self.original) > MOVED)

    def check_unchanged(self) -> None:
        now = _state(self.model)
        assert now.keys() == self.before.keys()
        for name, value in now.items():
            assert _same(value, self.before[name]), f"{name} of the original model has changed"


def any_projections(model: nn.Module, edits: Sequence[Edit]) -> tuple[Folded, dict[str, Explicit]]:
    """Projections drawn at random for what edits fold: in the weights, and explicit. A proof holds for any."""
    rng = torch.Generator().manual_seed(0)
    drawn: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    weights: dict[Fold, Mapping[str, Tensor]] = {}
    explicit: dict[str, Explicit] = {}
    for edit in folds_of(edits):
        size = reader_for(model.get_submodule(edit.owner), edit).num_in
        matrix, constant = drawn.setdefault(
            (edit.value, edit.source),
            (
                torch.randn(size, edit.num_in, generator=rng, dtype=torch.float64) / edit.num_in**0.5,
                torch.randn(size, generator=rng, dtype=torch.float64),
            ),
        )
        if edit.constant is None:  # as zeros around an image are to stay zeros
            constant = torch.zeros_like(constant)
        weights[edit] = folded(model, edit, Projection(matrix, None, constant))
        explicit[edit.fqn] = Explicit(matrix, constant, edit.strides)
    return weights, explicit


def run(model: nn.Module, batch: Batch) -> Any:
    with torch.no_grad():
        return model(*_copies(batch[0]), **_copies(batch[1]))


def _copies(value: Any) -> Any:
    """Copy inputs, which a forward may write into."""
    if isinstance(value, dict):
        return {key: _copies(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_copies, value))
    return value.clone() if isinstance(value, Tensor) else value


def distance(found: Any, expected: Any) -> float:
    """The largest difference of two outputs, relative to the largest element; infinite where their forms differ."""
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert pairs
    assert type(found) is type(expected)
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        return float("inf")
    assert all(bool(b.isfinite().all()) for _, b in pairs), "the simulation gives numbers"
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) for a, b in pairs)


def _trains(model: nn.Module, batch: Batch) -> Exception | None:
    """What a forward and backward in train mode raise; None if they run."""
    try:
        outputs = [t for t in tensors(model.train()(*_copies(batch[0]), **_copies(batch[1]))) if t.requires_grad]
        sum(t.square().mean() for t in outputs).backward()
    except RuntimeError as error:
        return error
    finally:
        model.eval()
    assert any(parameter.grad is not None for parameter in model.parameters())
    return None


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _state(model: nn.Module) -> dict[str, Any]:
    """All that a user could find changed: tensors and who they are, modes, attributes, submodules, hooks."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        state[f"'{name}'"] = (id(module), type(module), module.training, *map(tuple, (vars(module), module._modules)))
        state[f"hooks of '{name}'"] = [len(hooks) for key, hooks in vars(module).items() if key.endswith("_hooks")]
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            state[f"'{name}.{key}'"] = (
                None if tensor is None else (tensor, tensor.detach().clone(), tensor.requires_grad)
            )
    return state


def _same(now: Any, before: Any) -> bool:
    """Whether two states are the same; of a tensor, the same object with the same bits as the copy made then."""
    if isinstance(now, tuple) and now and isinstance(now[0], Tensor):
        return now[0] is before[0] and torch.equal(now[0], before[1]) and now[2] == before[2]
    return now == before
