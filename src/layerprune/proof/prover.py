"""Proves removals: carries out their edits on a copy of the model and checks what runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType

from torch import Tensor, nn

from layerprune.capture import Sandbox, ShapeCache, record_training
from layerprune.channels import TrainGraph
from layerprune.cost import params_gone, params_taken
from layerprune.edits import Edit, Shorten, folds_of, name_before
from layerprune.environment import progress_bar
from layerprune.errors import LayerPruneError, SurgeryError, short
from layerprune.graph import Cut, LayerGraph, Refusal, RefusalCode
from layerprune.inputs import Inputs
from layerprune.modules import named_parameters, names_by_module, reached
from layerprune.proof.dataflow_check import DataflowCheck
from layerprune.proof.failing_subset import failures, spread
from layerprune.proof.index_check import index_checked
from layerprune.proof.interference import Footprint, closed_modules, plain_leaves, touched
from layerprune.proof.resolution_check import ResolutionCheck
from layerprune.proof.runs import ProofRun, ProofRuns
from layerprune.proof.size_constants import SizeConstants
from layerprune.proof.trace_equivalence import TraceEquivalence
from layerprune.removals import (
    CacheSlots,
    Candidate,
    ContainerShortener,
    Lowering,
    difference,
    key_of,
    lower_removal,
    side_by_side,
)
from layerprune.stand_ins import DroppedTensor, dropped_tensors, watching_merges
from layerprune.surgery import applied, check_numbers
from layerprune.tables import brief, impact_text


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A proven way to remove one or several groups.

    Attributes:
        name: the replaced tensor and its substitute, for people.
        subject: the layers and numbers in the name.
        kind: ``bypass``, ``branch``, ``gate``, ``concat``, ``several``, ``shared``, ``block`` or ``projection``.
        groups: names of the groups that leave.
        cut: the substitution in the layer graph.
        lowering: the edits, the dead layers and the removed parameters.
        num_params: number of parameters that the model loses by it alone.
        impact: its cost in the plan's ``impact_unit``; ``nan`` until it is measured.
    """

    name: str
    subject: tuple[str | int, ...]
    kind: str
    groups: tuple[str, ...]
    cut: Cut
    lowering: Lowering
    num_params: int
    impact: float = float("nan")

    @property
    def dead(self) -> frozenset[int]:
        """The layers that die."""
        return self.lowering.dead

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that carry it out."""
        return self.lowering.edits

    @property
    def needs_calibration(self) -> bool:
        """Whether weights must be fitted on calibration data, for a projection that is folded into its readers."""
        return bool(self.cut.projected)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}: {', '.join(self.groups)}; {self.num_params:,} parameters)"

    def __repr__(self) -> str:
        figures = f"{self.num_params:,} parameters, impact {impact_text(self.impact)}"
        return brief(self, f"{self.kind} of {', '.join(self.groups)}: {figures}")


class Prover:
    """Proves removals of one model.

    A proof runs the edited sandbox in eval mode on the example inputs, and in train mode on twice as many samples. The
    outputs must have the untouched model's structure, shapes and dtypes, exactly the expected parameters must be gone,
    and exactly the expected merges must leave dropped tensors out.

    With ``whole_layers``, only whole layers of transformers models leave, so that vanilla transformers loads the
    result. With ``renumber``, elements leave the containers of any model whose forward then does the same.
    """

    def __init__(
        self, shade: Sandbox, graph: LayerGraph, inputs: Inputs, *, whole_layers: bool = False, renumber: bool = False
    ) -> None:
        self.shade = shade
        self.graph = graph
        self.modules = dict(shade.model.named_modules(remove_duplicate=False))
        self.names = {key: names[0] for key, names in names_by_module(shade.model).items()}
        self.shortener = ContainerShortener(
            graph, shade.model, self.modules, whole_only=whole_layers, renumber=renumber
        )
        self.unshortened: set[tuple[object, ...]] = set()  # keys of cuts
        self.notes: list[str] = []
        self.trials = ProofRuns(shade)
        self.runs = [self.trials.make(False, inputs)]
        twice = inputs.repeat(2)
        if twice is None:
            self.notes.append(
                "the batch dimension of the inputs is not known: removals were proven at one batch size only"
            )
        self.companion: TrainGraph | None = None
        self.training: LayerGraph | None = None  # of train mode, where eval mode leaves parameters unused
        self.add_training(twice or inputs)
        shade.start.settle()  # proofs start with the flags and counters of the user's model
        self.sizes = SizeConstants(shade, graph, inputs)
        self.one_by_one = any(_reaches_others(module) for module in shade.model.modules())
        self.memo = None if shade.mode is None else ShapeCache(shade.mode)
        self.flow = DataflowCheck(shade, graph, self.runs[0].inputs)
        if self.memo is not None:  # from here on the sandbox computes shapes only; recording must come before
            self.flow.memo = self.memo
            self.memo.attach(shade.model, plain_leaves(graph) if not self.flow.is_wanted else ())
            self.memo.attach_whole(shade.model, closed_modules(graph) if not self.flow.is_wanted else ())
        self.caches = CacheSlots(shade, self.modules, inputs, self.notes, self.memo)
        self.retracer = TraceEquivalence(shade, self.runs[0].inputs, self.memo)
        self.resolutions = ResolutionCheck(shade, inputs, self.memo, self.notes)

    def add_training(self, inputs: Inputs) -> None:
        """Add a train-mode run; on larger images where an auxiliary head needs them."""
        failed = ""
        for sized in (inputs, inputs.map(_twice_as_large)):
            try:
                self.runs.append(self.trials.make(True, sized))
            except Exception as error:  # user code, which may need targets in train mode
                failed = failed or short(error)
                continue
            self.training = training = record_training(self.shade, self.graph, sized)
            self.companion = None if training is None else TrainGraph(self.graph, training, self.modules)
            return
        self.notes.append(
            f"the untouched model does not run in train mode on these inputs ({failed}): not proven there"
        )

    def lower_removal(self, cut: Cut, *, shorten: bool = True) -> Lowering:
        """Lower a cut; whole layers of a transformers model leave their containers."""
        found = lower_removal(self.graph, self.modules, cut, self.companion)
        self.sizes.check(found.edits)
        found = self.caches.keep(self.shortener.shorten(found) if shorten else found)
        try:
            check_numbers(self.shade.model, found.edits)
        except SurgeryError as error:
            raise Refusal(RefusalCode.ERROR, error=error) from error
        return found

    # ---- many removals --------------------------------------------------------------------------------------------

    def prove(
        self, alternatives: Iterable[Sequence[Candidate]], forbidden: Mapping[str, Refusal]
    ) -> tuple[list[Removal], dict[str, list[Refusal]]]:
        """Prove candidates, many at a time where they touch different layers.

        Each list in ``alternatives`` stands for one removal: its first candidate that can be lowered and proven. Groups
        in ``forbidden`` must stay.

        Returns:
            The removals, in the order of their candidates; and for each group the reasons why candidates failed.
        """
        refused: dict[str, list[Refusal]] = {}
        listed = list(alternatives)
        with progress_bar("proving removals") as told:
            first = [c for c in listed if not c[0].waits]
            proven = self.prove_some(first, forbidden, refused, lambda done: told(done, len(listed)))
            others = [some for some in listed if some[0].waits]
            left = [[c for c in some if not any(_is_tidier(r, c) for r in proven)] for some in others]
            left, num = [some for some in left if some], len(first)
            proven += self.prove_some(left, forbidden, refused, lambda done: told(num + done, num + len(left)))
        return proven, refused

    def prove_some(
        self,
        alternatives: Iterable[Sequence[Candidate]],
        forbidden: Mapping[str, Refusal],
        refused: dict[str, list[Refusal]],
        told: Callable[[int], None],
    ) -> list[Removal]:
        """Prove the first candidate of each list that can be lowered; where its proof fails, try the next."""
        proven: list[tuple[int, Removal]] = []
        waiting = list(enumerate(alternatives))
        num = len(waiting)
        while waiting:
            found = [(place, self.first_realised(some, forbidden, refused), some) for place, some in waiting]
            realised = [(place, pair, some) for place, pair, some in found if pair is not None]
            done: dict[int, Removal] = {}
            pairs = [pair for _, pair, _ in realised]
            for batch in self.batches(pairs):
                self.prove_batch(batch, pairs, done, refused)
                told(num - len(waiting) + len(done))
            proven += [(realised[i][0], removal) for i, removal in done.items()]
            failed = [realised[i] for i in range(len(realised)) if i not in done]
            rest = [(place, self.others(pair, some)) for place, pair, some in failed]
            waiting = [(place, some) for place, some in rest if some]
        return [removal for _, removal in sorted(proven, key=lambda pair: pair[0])]

    def others(self, failed: tuple[Candidate, Lowering], some: Sequence[Candidate]) -> Sequence[Candidate]:
        """Candidates to try after a failed proof: stand-ins instead of a shorter container, then the next."""
        candidate, lowering = failed
        place = list(some).index(candidate)
        if not lowering.stand_ins or self.shortener.must(lowering) or key_of(candidate.cut) in self.unshortened:
            return some[place + 1 :]
        self.unshortened.add(key_of(candidate.cut))
        return some[place:]

    def first_realised(
        self, candidates: Sequence[Candidate], forbidden: Mapping[str, Refusal], refused: dict[str, list[Refusal]]
    ) -> tuple[Candidate, Lowering] | None:
        for candidate in candidates:
            kept = [name for name in candidate.groups if name in forbidden]
            try:
                found = self.lower_removal(candidate.cut, shorten=key_of(candidate.cut) not in self.unshortened)
                if kept:  # last, so that any other obstacle is reported first
                    raise Refusal(RefusalCode.TAKES_A_KEPT_GROUP, kept[0], because=forbidden[kept[0]])
                return candidate, found
            except Refusal as why:
                for name in candidate.groups:
                    refused.setdefault(name, []).append(why.bare)
        return None

    def batches(self, realised: Sequence[tuple[Candidate, Lowering]]) -> list[list[int]]:
        """Sort removals into batches whose members cannot hide each other's faults.

        They touch different modules, read no values that another's stand-ins return, and each concat keeps an operand.
        """
        batches: list[tuple[list[int], Footprint]] = []
        for index, (candidate, lowering) in enumerate(realised):
            own = Footprint.of(self.graph, candidate, lowering)
            for members, print_ in batches:
                apart = self.caches.use is not None and print_.containers != own.containers  # each may break the cache
                apart = apart or self.one_by_one  # a module may read another that a different removal takes out
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
        realised: Sequence[tuple[Candidate, Lowering]],
        proven: dict[int, Removal],
        refused: dict[str, list[Refusal]],
    ) -> None:
        """Prove removals together, one run after the other; failing removals drop out."""
        left = list(batch)
        for run in [*self.runs, None]:
            whole = {i: realised[i][1] for i in left}
            failed: dict[int, Refusal] = {}
            for part in [whole] if run is not None else spread(whole) if self.flow.is_wanted else []:
                failed |= failures(part, lambda some, run=run: self.reason_against(some, [run]))
            for i, reason in failed.items():
                for name in realised[i][0].groups:  # lowered, so nearer to a removal than refused lowerings
                    refused.setdefault(name, []).insert(0, reason)
            left = [i for i in left if i not in failed]
        for i in left:
            candidate, lowering = realised[i]
            size = params_taken(self.graph, self.modules, lowering).size(self.graph)
            proven[i] = Removal(
                name=candidate.name,
                subject=candidate.subject,
                kind=candidate.kind,
                groups=candidate.groups,
                cut=candidate.cut,
                lowering=lowering,
                num_params=size,
            )

    def reason_against(
        self, lowerings: Sequence[Lowering], runs: Sequence[ProofRun | None] | None = None
    ) -> Refusal | None:
        """Carry removals out together on the sandbox and return the first fault; None if there is none.

        ``runs`` are the runs to make, with None for :class:`DataflowCheck`; all by default.
        """
        try:
            joint = lowerings[0] if len(lowerings) == 1 else side_by_side(self.graph, lowerings)
            earlier = dropped_tensors(self.shade.model)  # from an earlier surgery on the user's model
            some = self.runs if runs is None else [run for run in runs if run is not None]
            folds = folds_of(joint.edits)
            if folds:
                self.resolutions.prepare()
            if self.memo is not None:
                self.memo.opening(touched(self.graph, joint))
            with applied(self.shade.model, joint.edits):
                self.check_params(joint)
                for run in some:
                    self.check_run(run, joint, earlier)
                if runs is None or (self.runs[0] in some and joint.stand_ins):
                    self.caches.check(joint.edits)
                if self.runs[0] in some:
                    self.resolutions.check(folds)
            if joint.stand_ins and self.runs[0] in some:
                self.retracer.check(joint)
            if runs is None or None in runs:
                self.flow.check(joint)
        except Refusal as why:
            return why.bare
        except LayerPruneError as error:
            return Refusal(RefusalCode.ERROR, error=error)
        return None

    # ---- one set --------------------------------------------------------------------------------------------------

    def check_params(self, joint: Lowering) -> None:
        names = {name for name, _ in named_parameters(self.shade.model, every_name=True)}
        ids = self.graph.param_ids
        shortens = [edit for edit in joint.edits if isinstance(edit, Shorten)]
        left = {ids[old] for old in (name_before(name, shortens) for name in names) if old in ids}
        lost, promised = frozenset(ids.values()) - left, params_gone(self.graph, joint)
        if lost != promised:
            wrong = next(name for name, number in ids.items() if number in lost ^ promised)
            code = RefusalCode.PARAMETER_LOST if ids[wrong] in lost else RefusalCode.PARAMETER_STAYS
            raise Refusal(code, param=wrong)

    def check_run(self, run: ProofRun, joint: Lowering, earlier: Sequence[DroppedTensor]) -> None:
        known = {id(token) for token in earlier}
        new = [token for token in dropped_tensors(self.shade.model) if id(token) not in known]
        # Rearranged channels were traced at the sizes of the example inputs, which only the first run uses.
        rerun = index_checked(self.shade.model, joint.moved if run is self.runs[0] else ())
        with watching_merges(new, self.names) as merges, rerun as faults:
            try:
                found = self.trials.repeat(run)
            except (Refusal, LayerPruneError):
                raise
            except Exception as error:  # user code in an edited model may raise any exception
                code = RefusalCode.FORWARD_OR_BACKWARD_FAILS if run.backward else RefusalCode.FORWARD_FAILS
                raise Refusal(code, error=error) from error
        if faults:
            raise faults[0]
        if found != run.expected:
            mode = "train" if run.training else "eval"
            raise Refusal(RefusalCode.OUTPUT_CHANGES, mode=mode, wanted=run.expected, found=found)
        if not run.training and (wrong := difference(merges, joint.merges)) is not None:
            raise wrong


def _reaches_others(module: nn.Module) -> bool:
    """Whether a module's own forward closes over other modules: the layer graph cannot tell what it reads."""
    forward = vars(module).get("forward")
    held = reached(forward) if isinstance(forward, FunctionType) else ()
    return any(isinstance(value, nn.Module) and value is not module for value in held)


def _twice_as_large(tensor: Tensor) -> Tensor:
    """Repeat an image to twice its height and width; other tensors stay."""
    return tensor.repeat(1, 1, 2, 2) if tensor.dim() == 4 and tensor.is_floating_point() else tensor


def _is_tidier(removal: Removal, candidate: Candidate) -> bool:
    """Whether a removal takes out the same groups as a bypass, and at least the same layers.

    For a whole branch, dropping its output is preferred to passing its input on.
    """
    return removal.groups == candidate.groups and candidate.dead <= removal.dead
