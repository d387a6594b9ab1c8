"""Carries a plan out on a copy of the model, fits its projections, and repairs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

from torch import nn

from layerprune.capture import Batch, finite_ones, require_finite, spoilt_inputs
from layerprune.errors import CalibrationError, LayerPruneError, RepairError
from layerprune.fidelity import Divergence, HeldOut, HeldOutVerdict, held_by, hold_out_of
from layerprune.fitting import ProjectionReport, fold_into
from layerprune.modules import UndoLog, named_buffers, named_parameters, write
from layerprune.plan import PruningPlan
from layerprune.repair import MEMORY_BYTES, ClosedFormRepair, RepairReport

_T = TypeVar("_T")


@dataclass(frozen=True)
class ExecutedPlan:
    """A plan carried out.

    Attributes:
        model: the pruned model.
        projection_report: the fitted projections; None where there were none.
        repair_report: the repaired layers; None where there was nothing to repair.
    """

    model: nn.Module
    projection_report: ProjectionReport | None = None
    repair_report: RepairReport | None = None


def carry_out(
    plan: PruningPlan,
    original: nn.Module,
    batches: Sequence[Batch] | None,
    *,
    how: str | None,
    inplace: bool,
    harm: Divergence | None = None,
) -> ExecutedPlan:
    """Carry a plan out, fit its projections, and repair the result.

    All steps run on a copy; only the finished result goes into the user's model. Weights are fitted and settings chosen
    on three quarters of the data; the last quarter is held out for the verdict.

    Args:
        plan: the plan.
        original: the user's model.
        graph: its layer graph.
        batches: calibration data; None if there are none.
        how: kind of repair, where there are data; None to leave the weights.
        harm: how a repair compares outputs; chosen from the model and its output if None.
        inplace: edit the user's model instead of a copy.

    Raises:
        PlanError: the plan was made for another model.
        CalibrationError: it holds projections, and there are no data, or these do not fit.
        NotFiniteError: the model makes NaN or infinite values of the data.
    """
    folds = plan.needs_calibration
    if folds and batches is None:
        raise CalibrationError(
            "the plan folds projections, which are fitted on calibration data: make the pruner with calibration=, "
            "an iterable of batches, and give it the plan"
        )
    if batches is None or not plan.edits or not (folds or how):
        return ExecutedPlan(plan.apply(original, inplace=inplace))
    if plan.rounds:
        return _in_rounds(plan, original, batches, how, inplace, harm)
    pruned = plan.apply(original, weights_follow=True)
    require_finite(original, batches, spoilt_inputs(batches))
    fitted_on, held = hold_out_of(original, batches)
    folding, notes = _on_finite(
        lambda some: fold_into(original, pruned, some, plan.edits, memory_bytes=MEMORY_BYTES),
        *(original, fitted_on),
    )
    judge = _Judge(original, pruned, held, harm)
    unrepaired = judge.held()
    report = None if how is None else _repaired(original, pruned, fitted_on, plan, how, harm)
    verdict, said = judge.verdict(unrepaired, report, sum(batch.num_samples for batch in fitted_on))
    fitted = replace(folding.report, notes=(*notes, *folding.report.notes)) if folds else None
    if report is not None:
        report = replace(report, verdict=verdict, notes=(*report.notes, *said))
    elif fitted is not None:
        fitted = replace(fitted, verdict=verdict, notes=(*fitted.notes, *said))
    if not inplace:
        return ExecutedPlan(pruned, fitted, report)
    _carry_over(plan, original, pruned if folds or (report is not None and report.kept) else None)
    return ExecutedPlan(original, fitted, report)


def _in_rounds(
    plan: PruningPlan,
    original: nn.Module,
    batches: Sequence[Batch],
    how: str | None,
    inplace: bool,
    harm: Divergence | None,
) -> ExecutedPlan:
    """Fit and repair after each round, against the model before that round; the reports are those of the last one."""
    carried, notes = ExecutedPlan(original), (f"of the last of {len(plan.rounds)} rounds, against the model before it",)
    for part in plan.parts:
        carried = carry_out(part, carried.model, batches, how=how, inplace=False, harm=harm)
    reports: dict[str, Any] = {
        name: replace(report, notes=(*notes, *report.notes))
        for name in ("projection_report", "repair_report")
        if (report := getattr(carried, name)) is not None
    }
    if inplace:
        _carry_over(plan, original, carried.model)
    return ExecutedPlan(original if inplace else carried.model, **reports)


def _carry_over(plan: PruningPlan, original: nn.Module, pruned: nn.Module | None) -> None:
    """Carry a plan out on the user's model, with the weights of a pruned copy if one is given."""
    undo_log = UndoLog()
    try:
        plan.carry_out(original, undo_log)
        if pruned is not None:
            tensors = chain(named_parameters(pruned), named_buffers(pruned))
            write(original, {name: tensor.detach() for name, tensor in tensors})
    except BaseException:  # also Ctrl-C: the plan is carried out whole or not at all
        undo_log.take_back()
        raise


@dataclass(frozen=True, eq=False)
class _Judge:
    """Judges a pruned model in its present state, on held-out data."""

    original: nn.Module
    pruned: nn.Module
    held_out: Sequence[Batch]
    harm: Divergence | None

    def held(self) -> HeldOut | None:
        """Its divergence from the original; None where nothing is held out or can be compared."""
        if not self.held_out:
            return None
        return held_by(self.original, self.pruned, self.held_out, self.harm)

    def verdict(
        self, before: HeldOut | None, report: RepairReport | None, num_fitted: int
    ) -> tuple[HeldOutVerdict | None, tuple[str, ...]]:
        """The verdict after a repair, and notes for the user."""
        if not self.held_out:
            return None, ("no held-out verdict: the calibration data cannot be cut; pass four batches or more",)
        is_changed = report is not None and report.kept
        after = self.held() if is_changed else before
        if before is None or after is None:
            return None, ()
        found = HeldOutVerdict(before, after, num_fitted, float("nan") if report is None else report.after)
        return found, found.notes


def _repaired(
    original: nn.Module,
    pruned: nn.Module,
    batches: Sequence[Batch],
    plan: PruningPlan,
    how: str,
    harm: Divergence | None,
) -> RepairReport:
    def attempt(some: Sequence[Batch]) -> RepairReport:
        return ClosedFormRepair(original, some, how=how, harm=harm).carry_out(pruned, plan.edits)

    try:
        report, notes = _on_finite(attempt, original, batches)
    except LayerPruneError as error:  # the pruned model is still valid
        return RepairReport(notes=(f"not repaired: {error}",))
    return replace(report, notes=(*notes, *report.notes))


def _on_finite(
    attempt: Callable[[Sequence[Batch]], _T], original: nn.Module, batches: Sequence[Batch]
) -> tuple[_T, tuple[str, ...]]:
    """Repeat a failed attempt without the batches on which the original's output is not finite, with a note."""
    try:
        return attempt(batches), ()
    except LayerPruneError:
        kept, notes = finite_ones(original, batches)
        if not notes:
            raise
    return attempt(kept), notes


def check_way(repair: str | None, *, has_data: bool) -> None:
    """Refuse a kind of repair that does not exist, or that needs missing data.

    Raises:
        RepairError: the kind does not exist.
        CalibrationError: it needs calibration data.
    """
    if repair not in ("auto", "mean", None):
        raise RepairError(f"repair is {repair!r:.60}; give 'auto', 'mean', or None to leave the weights as they are")
    if repair == "mean" and not has_data:
        raise CalibrationError(
            "repair='mean' measures on calibration data what is missing: make the pruner with calibration=, an "
            "iterable of batches, or give repair=None to leave the weights as they are"
        )
