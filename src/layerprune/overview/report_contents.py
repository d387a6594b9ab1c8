"""Collects the contents of the report page, of a pruner or of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from layerprune.checkpoint import Manifest, is_artefact, read_manifest
from layerprune.cost import Saving, bytes_text, measure
from layerprune.distillation import Distillation
from layerprune.errors import PlanError, ReportError
from layerprune.fidelity import Fidelity, HeldOutVerdict
from layerprune.html import FigureRow, FrontierSet, ReportData
from layerprune.inputs import describe
from layerprune.overview.overview import Overview
from layerprune.overview.reproduction import folder_reproduction, reproduction
from layerprune.plan import PruningPlan
from layerprune.repair import RepairReport
from layerprune.select import amount

_UNITS = {"macs": "", "latency_ms": " ms"}


def report_data(
    overview: Overview,
    plan: PruningPlan | None,
    saving: Saving | None,
    *,
    settings: Mapping[str, object],
    origin: str = "",
    repair: RepairReport | None = None,
    held_out: HeldOutVerdict | None = None,
    fidelity: Fidelity | None = None,
    distillation: Distillation | None = None,
) -> ReportData:
    """Collect what a pruner knows.

    Args:
        overview: the facts of the printed plan.
        plan: the plan; None where none was made.
        saving: the sizes of both models; None without a plan.
        settings: the pruner's options that differ from the defaults.
        origin: the source of the model.
        repair: the repair after the plan was carried out.
        held_out: the verdict on data that took part in no fit.
        fidelity: a comparison of both models.
        distillation: the training of the pruned model.
    """
    planner = overview.planner
    sized = [] if plan is None else figure_rows(plan, saving)
    return ReportData(
        model=type(planner.model).__name__,
        origin=origin,
        num_params=overview.totals.num_params,
        impact_unit=planner.scored.unit,
        num_macs=overview.totals.macs,
        inputs=describe(planner.meter.inputs),
        screen=overview.screen if plan is None else None,
        groups=tuple(overview.groups),
        facts={group.name: overview.facts(group) for group in overview.groups if group.verdict != "critical"},
        picture=overview.picture(plan),
        plan=plan,
        figures=sized or [(label, text, "", "") for label, text in measure(planner.model, planner.meter.inputs).rows()],
        fidelity=[] if fidelity is None else fidelity.rows()[: -len(fidelity.saving.rows())],
        fidelity_on="" if fidelity is None else f"{fidelity.num_samples} samples",
        sets=_sets(overview, plan, saving),
        repair=repair,
        held_out=held_out,
        distillation=distillation,
        notes=(*overview.notes, *(() if fidelity is None else fidelity.notes)),
        reproduction=reproduction(planner.model, plan, settings, origin, planner.seed),
    )


def figure_rows(plan: PruningPlan, saving: Saving | None) -> list[FigureRow]:
    """Sizes before and after: measured where a saving is given, else those that the plan holds."""
    rows = _plan_rows(plan)
    if saving is None:
        return rows
    measured = [row for row in saving.rows() if (row[1], row[2]) != ("—", "—")]
    known = {row[0] for row in measured}
    return [*measured, *(row for row in rows if row[0] not in known)]


def _plan_rows(plan: PruningPlan) -> list[FigureRow]:
    pairs = [("parameters", f"{plan.num_params_before:,}", f"{plan.num_params_after:,}", -plan.reduction)]
    labels = {"macs": "MACs", "latency_ms": "latency", "memory_bytes": "memory in all, peak"}
    for figure in plan.figures:
        before, after = (_amount(figure.name, value) for value in (figure.before, figure.after))
        change = (figure.after - figure.before) / figure.before if figure.before else 0.0
        pairs.append((labels.get(figure.name, figure.name), before, after, change))
    return [(label, before, after, f"{change:+.1%}") for label, before, after, change in pairs]


def _amount(name: str, value: float) -> str:
    if name == "memory_bytes":
        return bytes_text(int(value))
    return f"{value:.3g} ms" if name == "latency_ms" else f"{value:,.6g}"


def _sets(overview: Overview, plan: PruningPlan | None, saving: Saving | None) -> list[FrontierSet]:
    """The sets of the frontier with that of the plan, by size."""
    planner, macs = overview.planner, overview.totals.macs
    found = [
        FrontierSet(
            reduction=point.size / planner.graph.num_params,
            impact=point.impact,
            groups=_names(planner.scored.removals[i].groups for i in point.chosen),
            mac_reduction=amount(planner.meter.macs_pieces, point.chosen) / macs if macs else None,
        )
        for point in planner.frontier_sets
    ]
    if plan is not None and plan.removals:
        share = None if saving is None else saving.share("macs")
        found.append(_plan_set(plan, share))
    return sorted(found, key=lambda each: (each.reduction, not each.is_plan))


def _plan_set(plan: PruningPlan, mac_reduction: float | None) -> FrontierSet:
    impacts = [removal.impact for removal in plan.removals]
    known = [impact for impact in impacts if impact is not None]
    return FrontierSet(
        reduction=plan.reduction,
        impact=sum(known) if len(known) == len(impacts) else float("nan"),
        groups=_names(removal.groups for removal in plan.removals),
        mac_reduction=mac_reduction,
        is_plan=True,
    )


def _names(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for some in groups for name in some))


# ---- folders ---------------------------------------------------------------------------------------------------------


def folder_data(folder: Path) -> ReportData:
    """Collect what a folder of :func:`layerprune.save_pruned`, or a file of a plan, holds: no model is made.

    Raises:
        ReportError: there is no plan.
        PlanError: the plan cannot be read, or the folder holds several.
        CheckpointError: the manifest is damaged.
    """
    try:
        plan = PruningPlan.load(folder)
    except PlanError as error:
        if folder.exists():
            raise
        raise ReportError(
            f"there is no folder or file {folder}: give what `layerprune prune --out` or save_pruned has written, or a "
            "plan's JSON file"
        ) from error
    manifest = read_manifest(folder) if folder.is_dir() and is_artefact(folder) else None
    sets = [FrontierSet(reduction=p.reduction, impact=p.impact, groups=()) for p in plan.frontier]
    if plan.removals:
        sets.append(_plan_set(plan, None))
    return ReportData(
        model=plan.model,
        origin=str(folder),
        num_params=plan.num_params_before,
        impact_unit=plan.impact_unit,
        plan=plan,
        figures=[*_plan_rows(plan), *_manifest_rows(manifest)],
        sets=sorted(sets, key=lambda each: (each.reduction, not each.is_plan)),
        notes=("made from a folder without its model: give the model for the picture, the groups and the reasons",),
        reproduction=folder_reproduction(plan, folder, {} if manifest is None else manifest.versions),
    )


def _manifest_rows(manifest: Manifest | None) -> list[FigureRow]:
    """Figures that were saved with the pruned model."""
    return [] if manifest is None else [(name, "", f"{value:,.6g}", "") for name, value in manifest.figures.items()]
