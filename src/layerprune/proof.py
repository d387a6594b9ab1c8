"""Proof: a removal counts only once its edits were carried out on a shadow of the model and the result ran."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from layerprune.cost import params_taken
from layerprune.dropped import Dropped, dropped_tensors, watching_merges
from layerprune.edits import Edit, Shorten, name_before
from layerprune.errors import LayerPruneError
from layerprune.footprint import Footprint
from layerprune.graph import Cut, LayerGraph
from layerprune.groups import Group
from layerprune.inputs import Inputs
from layerprune.joint import together
from layerprune.marks import CannotRealise
from layerprune.memo import Memo
from layerprune.places import CacheKeeper
from layerprune.realise import Realisation, realise
from layerprune.removals import Candidate
from layerprune.shadow import Shadow, short
from layerprune.shorten import Shortener
from layerprune.surgery import applied
from layerprune.trace import Step, Tracer, first_difference, held_by_leaves


@dataclass(frozen=True)
class Removal:
    """A proven way to take one or several groups out.

    Attributes:
        name: what is replaced by what.
        kind: ``bypass``, ``branch``, ``gate``, ``concat``, ``several`` or ``block``.
        groups: names of the groups that leave.
        cut: the substitution in the layer graph.
        realisation: the edits, the layers that die and the parameters that go.
        num_params: how many parameters fewer the model has after it alone.
        impact: what it costs; see the plan's ``impact_unit``. ``nan`` until it is measured.
    """

    name: str
    kind: str
    groups: tuple[str, ...]
    cut: Cut
    realisation: Realisation
    num_params: int
    impact: float = float("nan")

    @property
    def dead(self) -> frozenset[int]:
        """The layers that die."""
        return self.realisation.dead

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What surgery does for it."""
        return self.realisation.edits

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}: {', '.join(self.groups)}; {self.num_params:,} parameters)"


@dataclass(frozen=True)
class _Run:
    """One forward that an edited shadow must pass."""

    training: bool
    inputs: Inputs
    expected: Any


class Prover:
    """Proves removals of one model.

    A set of removals is proven when the edited shadow runs, in eval mode on the example inputs and in train mode on
    twice as many samples, returns what the untouched one returns (structure, shapes, types), has lost the very
    parameters that it should, and left out dropped tensors in the very merges that it should.

    Args:
        shade: a shadow of the model.
        graph: the model's layer graph.
        inputs: the example inputs.
        whole_layers: of transformers models only whole layers may leave, so that vanilla transformers loads the rest.
    """

    def __init__(self, shade: Shadow, graph: LayerGraph, inputs: Inputs, *, whole_layers: bool = False) -> None:
        self.shade = shade
        self.graph = graph
        self.modules = dict(shade.model.named_modules(remove_duplicate=False))
        self.shortener = Shortener(graph, shade.model, self.modules, whole_layers)
        self.tracer = Tracer(shade.model)
        self.memo = None if shade.mode is None else Memo(shade.mode)
        if self.memo is not None:
            self.memo.attach(shade.model, _plain_leaves(graph))
        self.unshortened: set[str] = set()
        self.notes: list[str] = []
        self.caches = CacheKeeper(shade, self.modules, inputs, self.notes)
        self.runs = [_Run(False, shade.adapt(inputs), self.run(False, shade.adapt(inputs)))]
        twice = inputs.repeat(2)
        if twice is None:
            self.notes.append(
                "the batch dimension of the inputs is not known: removals were proven at one batch size only"
            )
        twice = twice or inputs
        try:
            self.runs.append(_Run(True, shade.adapt(twice), self.run(True, shade.adapt(twice))))
        except Exception as error:  # the user's own forward, which may want targets when it trains
            self.notes.append(
                f"the untouched model does not run in train mode on these inputs ({short(error)}): not proven there"
            )

    def run(self, training: bool, inputs: Inputs) -> Any:
        """Run the shadow and describe what it returns."""
        self.shade.model.train(training)
        try:
            with self.shade.running():
                return signature(self.shade.model(*inputs.args, **inputs.kwargs))
        finally:
            self.shade.model.eval()

    def realise(self, cut: Cut, *, shorten: bool = True) -> Realisation:
        """Find the edits that carry a cut out; whole layers of a transformers model leave their containers."""
        found = realise(self.graph, self.modules, cut)
        return self.caches.keep(self.shortener.shorten(found) if shorten else found)

    # ---- many removals --------------------------------------------------------------------------------------------

    def prove(
        self, alternatives: Iterable[Sequence[Candidate]], forbidden: Mapping[str, str]
    ) -> tuple[list[Removal], dict[str, list[str]]]:
        """Prove candidates, many at a time where they touch different layers.

        Args:
            alternatives: lists of candidates of which the first that can be realised stands for the list.
            forbidden: groups that may not go.

        Returns:
            The removals, in the order of their candidates; and for each group the reasons why others failed.
        """
        refused: dict[str, list[str]] = {}
        listed = list(alternatives)
        proven = self.prove_some([c for c in listed if c[0].kind != "bypass"], forbidden, refused)
        others = [some for some in listed if some[0].kind == "bypass"]
        left = [[c for c in some if not any(_is_tidier(r, c) for r in proven)] for some in others]
        return proven + self.prove_some([some for some in left if some], forbidden, refused), refused

    def prove_some(
        self,
        alternatives: Iterable[Sequence[Candidate]],
        forbidden: Mapping[str, str],
        refused: dict[str, list[str]],
    ) -> list[Removal]:
        """Prove the first of each list that can be realised; where its proof fails, the next."""
        proven: list[tuple[int, Removal]] = []
        waiting = list(enumerate(alternatives))
        while waiting:
            found = [(place, self.first_realised(some, forbidden, refused), some) for place, some in waiting]
            realised = [(place, pair, some) for place, pair, some in found if pair is not None]
            done: dict[int, Removal] = {}
            pairs = [pair for _, pair, _ in realised]
            for batch in self.batches(pairs):
                self.prove_batch(batch, pairs, done, refused)
            proven += [(realised[i][0], removal) for i, removal in done.items()]
            failed = [realised[i] for i in range(len(realised)) if i not in done]
            rest = [(place, self.others(pair, some)) for place, pair, some in failed]
            waiting = [(place, some) for place, some in rest if some]
        return [removal for _, removal in sorted(proven, key=lambda pair: pair[0])]

    def others(self, failed: tuple[Candidate, Realisation], some: Sequence[Candidate]) -> Sequence[Candidate]:
        """What to try where a proof has failed: stand-ins instead of a shorter container, then the next candidate."""
        candidate, realisation = failed
        place = list(some).index(candidate)
        if not realisation.stand_ins or self.shortener.whole_only or candidate.name in self.unshortened:
            return some[place + 1 :]
        self.unshortened.add(candidate.name)
        return some[place:]

    def first_realised(
        self, candidates: Sequence[Candidate], forbidden: Mapping[str, str], refused: dict[str, list[str]]
    ) -> tuple[Candidate, Realisation] | None:
        for candidate in candidates:
            kept = [name for name in candidate.groups if name in forbidden]
            try:
                if kept:
                    raise CannotRealise(
                        f"leaves only together with '{kept[0]}', which {_as_clause(forbidden[kept[0]])}"
                    )
                return candidate, self.realise(candidate.cut, shorten=candidate.name not in self.unshortened)
            except CannotRealise as error:
                for name in candidate.groups:
                    refused.setdefault(name, []).append(str(error))
        return None

    def batches(self, realised: Sequence[tuple[Candidate, Realisation]]) -> list[list[int]]:
        """Sort removals into batches whose members cannot hide each other's faults.

        They touch different modules, none reads what another's stand-ins return, and every concat keeps an operand.
        """
        batches: list[tuple[list[int], Footprint]] = []
        for index, (candidate, realisation) in enumerate(realised):
            own = Footprint.of(self.graph, candidate, realisation)
            for members, print_ in batches:
                apart = self.caches.use is not None and print_.containers != own.containers  # each may break it alone
                if not apart and not print_.disturbs(own) and self.leaves_some(print_.dropped | own.dropped):
                    members.append(index)
                    print_.add(own)
                    break
            else:
                batches.append(([index], own))
        return [members for members, _ in batches]

    def leaves_some(self, dropped: set[tuple[int, int]]) -> bool:
        """Whether every concat that loses operands keeps one."""
        merges = {merge for merge, _ in dropped}
        return all(
            {(v,) for m, v in dropped if m == merge} < set(self.graph.layers[merge].operands) for merge in merges
        )

    def prove_batch(
        self,
        batch: list[int],
        realised: Sequence[tuple[Candidate, Realisation]],
        proven: dict[int, Removal],
        refused: dict[str, list[str]],
    ) -> None:
        """Prove removals together, one run after the other; what fails drops out."""
        left = list(batch)
        for run in self.runs:
            failed = self.failures({i: realised[i][1] for i in left}, run)
            for i, reason in failed.items():
                for name in realised[i][0].groups:  # it could be realised: nearer than what could not
                    refused.setdefault(name, []).insert(0, reason)
            left = [i for i in left if i not in failed]
        for i in left:
            candidate, realisation = realised[i]
            size = params_taken(self.graph, self.modules, realisation).size(self.graph)
            proven[i] = Removal(candidate.name, candidate.kind, candidate.groups, candidate.cut, realisation, size)

    def failures(self, batch: Mapping[int, Realisation], run: _Run) -> dict[int, str]:
        """Which removals of a batch fail a run, and why; found by halving."""
        if not batch:
            return {}
        reason = self.reason_against(list(batch.values()), [run])
        if reason is None:
            return {}
        members = list(batch)
        if len(members) == 1:
            return {members[0]: reason}
        halves = members[: len(members) // 2], members[len(members) // 2 :]
        return {i: why for half in halves for i, why in self.failures({i: batch[i] for i in half}, run).items()}

    def reason_against(self, realisations: Sequence[Realisation], runs: Sequence[_Run] | None = None) -> str | None:
        """Carry removals out together on the shadow and say what is wrong with the result; None if nothing is."""
        try:
            joint = realisations[0] if len(realisations) == 1 else together(self.graph, realisations)
            earlier = dropped_tensors(self.shade.model)  # what a surgery before this library's call has left
            some = self.runs if runs is None else runs
            with applied(self.shade.model, joint.edits):
                self.check_params(joint)
                for run in some:
                    self.check_run(run, joint, earlier)
                if self.runs[0] in some:
                    self.caches.check(joint.edits)
            if joint.stand_ins and self.runs[0] in some:
                self.check_shorter(joint)
        except (CannotRealise, LayerPruneError) as error:
            return str(error)
        return None

    # ---- one set --------------------------------------------------------------------------------------------------

    def check_params(self, joint: Realisation) -> None:
        names = {name for name, _ in self.shade.model.named_parameters(remove_duplicate=False)}
        ids = self.graph.param_ids
        shortens = [edit for edit in joint.edits if isinstance(edit, Shorten)]
        left = {ids[old] for old in (name_before(name, shortens) for name in names) if old in ids}
        users = self.graph.param_users
        lost = {number for number in ids.values() if number not in left and number in users}
        if lost != set(joint.params):
            wrong = next(name for name, number in ids.items() if number in lost ^ joint.params)
            what = "would be lost, though it is still used" if ids[wrong] in lost else "would stay behind"
            raise CannotRealise(f"parameter '{wrong}' {what}")

    def check_shorter(self, joint: Realisation) -> None:
        """Check that a model with shorter containers calls the very functions that one with stand-ins does."""
        held: list[dict[int, dict[str, Any]]] = []
        for edits in (joint.stand_ins, joint.edits):
            with applied(self.shade.model, edits):
                held.append(held_by_leaves(self.shade.model))
        settled = {key for key, values in held[0].items() if held[1].get(key) == values}
        steps = [self.steps(edits, settled) for edits in (joint.stand_ins, joint.edits)]
        where = first_difference(*steps)
        if where:
            raise CannotRealise(f"the forward depends on the places of layers: '{where}' would run on something else")

    def steps(self, edits: Sequence[Edit], settled: Collection[int]) -> list[Step]:
        """Trace the shadow with edits made; the layers that are settled answer from the memo."""
        inputs, model = self.runs[0].inputs, self.shade.model
        if self.memo is not None:
            self.memo.observer = partial(self.tracer.leaf, settled)
        try:
            with applied(model, edits), self.shade.running():
                forward = partial(model, *inputs.args, **inputs.kwargs)
                return self.tracer.trace(forward, (inputs.args, inputs.kwargs), keep=self.memo is not None)
        except (CannotRealise, LayerPruneError):
            raise
        except Exception as error:  # the user's forward on what is left of the model: anything may come
            raise CannotRealise(f"the forward fails without it: {short(error)}") from error
        finally:
            if self.memo is not None:
                self.memo.observer = None

    def check_run(self, run: _Run, joint: Realisation, earlier: Sequence[Dropped]) -> None:
        known = {id(token) for token in earlier}
        new = [token for token in dropped_tensors(self.shade.model) if id(token) not in known]
        with watching_merges(new) as merges:
            try:
                found = self.run(run.training, run.inputs)
            except (CannotRealise, LayerPruneError):
                raise
            except Exception as error:  # the user's forward on what is left of the model: anything may come
                raise CannotRealise(f"the forward fails without it: {short(error)}") from error
        if found != run.expected:
            mode = "train" if run.training else "eval"
            raise CannotRealise(f"the output would change its form in {mode} mode: {run.expected} to {found}")
        if sorted(merges) != list(joint.merges) and not run.training:
            raise CannotRealise("the forward merges the dropped tensor elsewhere than the layer graph says")


def _plain_leaves(graph: LayerGraph) -> frozenset[str]:
    """The leaf modules that make one tensor of one tensor, write into none, and read no values."""
    layers = [layer for layer in graph.layers if layer.is_module]
    plain = {layer.fqn for layer in layers if len(layer.operands) == len(layer.outputs) == 1 and not layer.writes}
    return frozenset(plain - {layer.fqn for layer in layers if len(layer.operands) != 1 or layer.writes})


def _is_tidier(removal: Removal, candidate: Candidate) -> bool:
    """Whether a removal takes the same groups out as a bypass, and at least all that the bypass does.

    Handing a branch's input on in place of its output is no better way to lose the branch than dropping it.
    """
    return removal.groups == candidate.groups and candidate.dead <= removal.dead


def _as_clause(reason: str) -> str:
    """Fit a verdict into a sentence: "protected by …" wants a verb, "reads the model's input" has one."""
    return f"is {reason}" if reason.startswith("protected") else reason


def signature(out: Any, depth: int = 0) -> Any:
    """Describe an output: types, keys, and each tensor's shape and dtype. A dropped tensor in it is an error."""
    if isinstance(out, Dropped):
        raise CannotRealise("the dropped tensor would reach the model's output")
    if isinstance(out, Tensor):
        return f"{'×'.join(map(str, out.shape))} {str(out.dtype).removeprefix('torch.')}"
    if isinstance(out, Mapping):
        return {str(key): signature(value, depth + 1) for key, value in out.items()}
    if isinstance(out, (list, tuple)):
        return [type(out).__name__, *(signature(value, depth + 1) for value in out)]
    if depth < 4 and hasattr(out, "__dict__") and not isinstance(out, (type, nn.Module)):
        return {key: signature(value, depth + 1) for key, value in vars(out).items()}
    return type(out).__name__


def with_reasons(groups: Sequence[Group], removals: Sequence[Removal], reasons: Mapping[str, str]) -> list[Group]:
    """Give each group its verdict, its least impact and its reason, sorted by impact, critical ones last."""
    judged: list[Group] = []
    for group in groups:
        ways = [r for r in removals if group.name in r.groups]
        if not ways:
            judged.append(replace(group, can_remove=False, impact=float("inf"), reason=reasons.get(group.name, "")))
            continue
        best = min(ways, key=lambda r: (r.impact, r.num_params, r.name))
        others = [f"'{name}'" for name in best.groups if name != group.name]
        reason = f"leaves together with {', '.join(others)}" if others else ""
        judged.append(replace(group, can_remove=True, impact=best.impact, reason=reason))
    return sorted(judged, key=lambda g: (not g.can_remove, g.impact))
