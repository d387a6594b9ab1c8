"""Repairs a pruned model in closed form: solves all sites, judges by the output, writes all weights at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from layerprune.capture import ActivationStore, Batch, fitting, notes_of, read_calibration, record_real
from layerprune.edits import Edit
from layerprune.environment import locked
from layerprune.errors import RepairError
from layerprune.fidelity import Divergence, Kind, divergence_named
from layerprune.modules import unwrap, write
from layerprune.repair.refit import Refitter, first_held_out
from layerprune.repair.report import RepairReport, about_rows
from layerprune.repair.sites.permutation import Permutation
from layerprune.repair.sites.sites import find_sites, renumbered
from layerprune.repair.sites.unchanged import changed_sites
from layerprune.repair.stream.model_run import ModelRun
from layerprune.repair.verdict import Judged, judge

MEMORY_BYTES = 4 * 2**30

WAYS = ("refit", "mean")

_SHARE_HELD = 4  # a quarter of the memory holds the original's recorded tensors, which saves a forward on that batch


@locked
def repair(
    original: nn.Module,
    pruned: nn.Module,
    calibration: Iterable[Any],
    *,
    edits: Sequence[Edit] = (),
    memory_bytes: int = MEMORY_BYTES,
    how: str = "refit",
    new_biases: bool = False,
    kind: Kind | None = None,
) -> RepairReport:
    """Solve the transforms behind each gap again, so that they restore the tensors of the original.

    Each batch runs once through both models, side by side. Front to back, each transform whose tensor the removals
    changed gets new weights by ridge regression. They bring the tensor that the transform feeds linearly (through sums,
    permutations, batch norms), or through one normalization, nearest to the original's. The ridge strength is chosen on
    the last quarter of the data, with weights that were not fitted on it; weights that do not help there are dropped.
    The others are then fitted on all data. If the output on the last quarter is no better at the end, the model does
    not change. After several transforms in a row with almost no gain, the next ones are skipped, up to the next gap.

    Both models run in eval mode on copies that share their weights; modes, hooks, buffers and the RNG do not change.

    Args:
        original: the model before pruning.
        pruned: the pruned model. Its parameters are written at the end, all or none.
        calibration: batches of real inputs for the forward; at least as many tokens as the widest layer has inputs.
        edits: ``plan.edits``; needed where whole layers have left their container and the others are renumbered.
        memory_bytes: the memory for solving one transform, in bytes; the tensors of waiting batches may take as much
            again. A transform whose Gram matrix is too large gets ``W = T W₀`` instead, or does not change; batches
            whose tensors do not fit restart for each transform.
        how: ``refit``: solve the weights; ``mean``: only shift biases, or the running means of batch norms behind
            transforms without a bias, by the mean difference. That costs the two forwards and needs few data.
        new_biases: whether ``mean`` may give a bias to a transform without one, which adds parameters to the model and
            keys to its state.
        kind: how outputs are compared: ``distribution`` for logits, ``values`` for plain numbers; None: told from the
            model and its output.

    Returns:
        The result of each transform, and the divergence of the output before and after.

    Raises:
        CalibrationError: the data are empty, do not fit either model, or give values that are not finite.
        RepairError: ``how`` is unknown, or layers are renumbered and ``edits`` do not tell how.
    """
    if how not in WAYS:
        raise RepairError(f"how is {how!r}; give one of {', '.join(map(repr, WAYS))}")
    harm, batches = divergence_named(kind), read_calibration(calibration, unwrap(original))
    mender = ClosedFormRepair(original, batches, memory_bytes=memory_bytes, how=how, new_biases=new_biases, harm=harm)
    report = mender.carry_out(pruned, edits)
    return replace(report, notes=(*notes_of(batches), *report.notes))


class ClosedFormRepair:
    """Repairs pruned models of one original, one after the other; :func:`repair` explains the arguments."""

    def __init__(
        self,
        original: nn.Module,
        batches: Sequence[Batch],
        *,
        memory_bytes: int = MEMORY_BYTES,
        how: str = "refit",
        new_biases: bool = False,
        harm: Divergence | None = None,
    ) -> None:
        self.original = unwrap(original)
        self.batches = batches
        self.recorded = _recorded(batches)
        self.side = _side(self.original, batches, self.recorded, ActivationStore(memory_bytes // _SHARE_HELD))
        self.memory_bytes = memory_bytes
        self.how = how
        self.harm = harm
        self.new_biases = new_biases

    def carry_out(self, pruned: nn.Module, edits: Sequence[Edit]) -> RepairReport:
        report, values = self.mend(pruned, edits)
        write(unwrap(pruned), values)
        return report

    def mend(self, pruned: nn.Module, edits: Sequence[Edit]) -> tuple[RepairReport, Mapping[str, Tensor]]:
        """Find new values for a pruned model's tensors, without changing the model.

        Returns:
            The report, and the new values by name; no values where the output is no better with them.

        Raises:
            RepairError: layers are renumbered and the edits do not tell how.
        """
        pruned, batches = unwrap(pruned), self.batches
        if why := renumbered(self.original, pruned, edits):
            raise RepairError(why)
        side = _side(pruned, batches, self.recorded, ActivationStore(0))
        original = replace(self.side, num_forwards=0)
        norms, knows = self.how == "refit", _order_known_to(batches)
        sites, refused = find_sites(original.graph, side.graph, pruned, edits, norms=norms, knows=knows)
        if not sites:
            return RepairReport(refused=refused, notes=("no transform can be solved again",)), {}
        sites = changed_sites(sites, side.graph, self.original, pruned)
        refitter = Refitter(original, side, batches, self.memory_bytes, how=self.how, new_biases=self.new_biases)
        refitted, repaired = refitter.run(sites)
        refused |= refitter.refused
        if not refitted:
            same = "no tensor that a transform feeds differs from the original's"
            return RepairReport(refused=refused, notes=(same,)), {}
        judged = [self._judged(number, side, outputs) for number, outputs in refitter.outputs.items()]
        shades = original.shade, side.shade, repaired
        verdict = judge(self.original, shades, judged, self.harm)
        kept = any(one.kept for one in refitted) and (verdict.after < verdict.before or not verdict.unit)
        notes = [*refitter.notes, *about_rows(refitted)]
        if not kept:
            notes.append("the pruned model stays as it was: new weights make its output no better")
        report = RepairReport(
            refitted=tuple(refitted),
            refused=refused,
            before=verdict.before,
            after=verdict.after,
            unit=verdict.unit,
            kept=kept,
            num_forwards=(original.num_forwards // len(batches), side.num_forwards // len(batches)),
            notes=tuple(notes),
        )
        return report, refitter.values if kept else {}

    def _judged(self, number: int, side: ModelRun, outputs: tuple[Any, Any]) -> Judged:
        return Judged(self.batches[number], outputs[0], side.output(number), outputs[1])


def _order_known_to(batches: Sequence[Batch]) -> Callable[[Permutation], bool]:
    """Tell whether a permutation that was recorded on the first batch holds for all batches."""
    shapes = [[tuple(tensor.shape) for tensor in batch.inputs.tensors()] for batch in batches]
    alike = all(some == shapes[0] for some in shapes)
    samples = [[shape[1:] for shape in some] for some in shapes]
    alike_by_sample = all(some == samples[0] for some in samples)
    return lambda moves: alike or (moves.by_sample and alike_by_sample)


def _recorded(batches: Sequence[Batch]) -> int:
    """The number of the batch that both models are recorded on: a held-out one, if its shapes are those of the first.

    A recording of a smaller last batch may not hold for the others.
    """
    shapes = [[tuple(tensor.shape) for tensor in batch.inputs.tensors()] for batch in batches]
    return next(
        (number for number in range(first_held_out(len(batches)), len(batches)) if shapes[number] == shapes[0]), 0
    )


def _side(model: nn.Module, batches: Sequence[Batch], number: int, held: ActivationStore) -> ModelRun:
    """Record a model on a real batch, and hold the tensors of that forward."""
    with fitting(model, batches[number].inputs, number):
        graph, shade = record_real(model, batches[number].inputs, held)
    return ModelRun(model=model, shade=shade, graph=graph, recorded=number, held=held)
