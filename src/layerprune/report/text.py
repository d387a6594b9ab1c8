"""The plan as text, in the form that the project began with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from layerprune.groups import Group, LayerInfo, Verdict
from layerprune.plan import PlannedRemoval, PruningPlan

SAFE = "✓ SAFE TO REMOVE"
WITH_CALIBRATION = "○ REMOVABLE WITH CALIBRATION DATA"
CRITICAL = "✗ CRITICAL"
HEADINGS: Mapping[Verdict, str] = {"removable": SAFE, "with_calibration": WITH_CALIBRATION, "critical": CRITICAL}


#: The ends of an interval; None where there is none.
Interval = tuple[float, float] | None


def groups_text(
    groups: Sequence[Group],
    kept: Mapping[str, frozenset[str]],
    num_params: int,
    intervals: Mapping[str, Interval] | None = None,
) -> str:
    """Render groups, one block of lines each.

    Args:
        groups: in the order in which they are shown and numbered.
        kept: group name → names of members that stay when it goes.
        num_params: the model's number of parameters, for the shares.
        intervals: group name → interval of its impact.
    """
    head = ["PRUNING GROUPS (each starting from a transform layer):", "-" * 80]
    blocks = [
        _group_lines(number, group, kept.get(group.name, frozenset()), num_params, (intervals or {}).get(group.name))
        for number, group in enumerate(groups)
    ]
    return "\n".join([*head, *(line for block in blocks for line in ("", *block))])


def _group_lines(number: int, group: Group, kept: frozenset[str], num_params: int, interval: Interval) -> list[str]:
    share = group.num_params / num_params if num_params else 0.0
    lines = [
        f"Group {number}: {HEADINGS[group.verdict]}",
        f"  Lead Transform: {group.lead_transform.name} ({group.lead_transform.type_name})",
        f"  Type: {group.type}",
        f"  Impact Score: {impact_text(group.impact)}",
        f"  Parameters: {group.num_params:,} ({share:.1%})",
        f"  Layers ({len(group.layers)}):",
    ]
    for place, layer in enumerate(group.layers):
        lines.append(f"    {'→' if place else '★'} {layer}{_mark(layer, kept)}")
    if group.reason:
        lines.append(f"  Reason: {group.reason}" if group.verdict == "critical" else f"  Note: {group.reason}")
    if group.needs_calibration:
        lines.append("  Needs calibration: a projection takes its place, which is fitted on calibration data")
    if interval is not None:
        low, high = map(impact_text, interval)
        lines.append(f"  Impact Interval: {low} to {high} (95 %, over calibration batches)")
    return lines


def _mark(layer: LayerInfo, kept: frozenset[str]) -> str:
    return " [kept]" if layer.name in kept else ""


def impact_text(impact: float) -> str:
    """Three decimals, or digits of a small one; ``inf`` for what cannot go, ``unknown`` for what was not measured."""
    if math.isnan(impact):
        return "unknown"
    return f"{impact:.3g}" if 0 < abs(impact) < 0.1 else f"{impact:.3f}"


def summary_text(
    groups: Sequence[Group], num_params: int, removable: int, impact_unit: str, notes: Sequence[str]
) -> str:
    """Render what stands below the groups: the sums, the unit of the impacts, the notes."""
    count = Counter(group.verdict for group in groups)
    found = f"{count['removable']} safe to remove now, {count['with_calibration']} with calibration data"
    share = removable / num_params if num_params else 0.0
    lines = [
        "PRUNING SUMMARY:",
        "-" * 80,
        f"Total parameters: {num_params:,}",
        f"Groups: {len(groups)} ({found}, {count['critical']} critical)",
        f"Parameters in safe groups: {removable:,} ({share:.1%})",
        f"Impact: {impact_unit}",
        *(f"Note: {note}" for note in notes),
    ]
    return "\n".join(lines)


def plan_text(plan: PruningPlan) -> str:
    """Render what a plan removes, how close it came to its budgets, and what other sizes would cost."""
    lines = [
        "CHOSEN REMOVALS:",
        "-" * 80,
        *(_removal_line(removal) for removal in plan.removals),
        f"Parameters: {plan.num_params_before:,} → {plan.num_params_after:,} ({-plan.reduction:+.1%})",
        *figure_lines(plan),
        *_left_lines(plan),
        f"Strategy: {plan.strategy}",
        *(f"Note: {note}" for note in plan.notes),
        *_frontier_lines(plan),
    ]
    return "\n".join(lines)


def figure_lines(plan: PruningPlan) -> list[str]:
    """What is left of multiply-accumulates, time and memory, where a budget speaks of them; the impact of all."""
    lines = [
        f"{_FIGURES.get(each.name, each.name)}: {each.before:,.4g} → {each.after:,.4g} "
        f"({(each.after - each.before) / each.before if each.before else 0.0:+.1%})"
        for each in plan.figures
    ]
    if plan.impact_together is not None:
        total = sum(removal.impact or 0.0 for removal in plan.removals)
        lines.append(f"Impact of all together, measured: {plan.impact_together:.4g} (sum of each alone: {total:.4g})")
    return lines


def _left_lines(plan: PruningPlan) -> list[str]:
    """What still runs on what is left, and what it takes to load the pruned model."""
    left = [name for removal in plan.removals for name in removal.leftovers]
    named = ", ".join([*left[:3], "…"] if len(left) > 3 else left)
    lines = [f"Left over: {len(left)} of the functions around what goes: {named}"] if left else []
    if plan.needs_layerprune:
        lines.append("Load it with layerprune.load_pruned: stand-ins take the places of what goes")
    return lines


_FIGURES = {"macs": "MACs", "latency_ms": "Latency, ms", "memory_bytes": "Memory, bytes"}


def _removal_line(removal: PlannedRemoval) -> str:
    impact = impact_text(math.nan if removal.impact is None else removal.impact)
    if removal.impact_interval is not None:
        impact += f" [{', '.join(map(impact_text, removal.impact_interval))}]"
    again = "" if removal.recurrence is None else f", in {removal.recurrence:.0%} of draws"
    return f"  {removal.name} [{', '.join(removal.groups)}]: {removal.num_params:,} parameters, impact {impact}{again}"


def _frontier_lines(plan: PruningPlan) -> list[str]:
    """The least sum of impacts for every size, two rows of a table."""
    if not plan.frontier:
        return []
    sizes = [f"{point.reduction:.1%}" for point in plan.frontier]
    impacts = [f"{point.impact:.3g}" for point in plan.frontier]
    widths = [max(len(a), len(b)) for a, b in zip(sizes, impacts, strict=True)]
    rows = (("removed ", sizes), ("impact  ", impacts))
    return [
        "Frontier (least sum of impacts for every size, predicted):",
        *(f"  {name}{'  '.join(c.rjust(w) for c, w in zip(cells, widths, strict=True))}" for name, cells in rows),
    ]
