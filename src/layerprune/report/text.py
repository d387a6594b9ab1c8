"""The plan as text, in the form of the seed example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layerprune.fidelity import HeldOutVerdict
from layerprune.graph import Group, GroupVerdict, LayerInfo
from layerprune.plan import PlannedRemoval, PruningPlan
from layerprune.proof import Removal
from layerprune.report.repeated_groups import RepeatedGroups, alike_line, partners_line, repeated_groups_of
from layerprune.tables import WIDTH, amount_text, impact_text, rule, wrapped

SAFE = "✓ SAFE TO REMOVE"
WITH_CALIBRATION = "○ REMOVABLE WITH CALIBRATION DATA"
CRITICAL = "✗ CRITICAL"
HEADINGS: Mapping[GroupVerdict, str] = {"removable": SAFE, "with_calibration": WITH_CALIBRATION, "critical": CRITICAL}


#: Lower and upper end; None without an interval.
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Facts:
    """Facts about a group beside its own fields.

    Attributes:
        kept: names of members that stay when the group is removed.
        interval: of its impact.
        macs: MACs that its removal saves; None where they are not known.
        by_name: the removal used when the group is named, where it is not the removal of least impact.
    """

    kept: frozenset[str] = frozenset()
    interval: Interval = None
    macs: float | None = None
    by_name: Removal | None = None


@dataclass(frozen=True)
class Totals:
    """Parameters of the model, and MACs of a forward (None where not counted), as the totals of shares."""

    num_params: int
    macs: int | None = None


def groups_text(
    groups: Sequence[Group], facts: Mapping[str, Facts], totals: Totals, *, width: int = WIDTH, full: bool = False
) -> str:
    """Render groups in the given order, each as a block of lines, with long lines wrapped at ``width``.

    Without ``full``, one of several similar groups is shown, as is one of several that leave by one removal; the others
    are named below it.
    """
    known = [facts.get(group.name, Facts()) for group in groups]
    blocks = [_group_lines(n, group, fact, totals) for n, (group, fact) in enumerate(zip(groups, known, strict=True))]
    folds = [RepeatedGroups(number) for number in range(len(groups))]
    if not full:
        told = [[line for line in lines[1:] if not line.startswith(_OWN)] for lines in blocks]
        by_name = [fact.by_name and fact.by_name.num_params for fact in known]
        sizes = [(g.num_removed, fact.macs, b) for g, fact, b in zip(groups, known, by_name, strict=True)]
        folds = repeated_groups_of(groups, told, sizes)
    impacts = {group.name: impact_text(group.impact) for group in groups}
    lines = ["PRUNING GROUPS (each starting from a transform layer):", rule(width)]
    for fold in folds:
        lines += ["", *blocks[fold.first]]
        if fold.partners:
            by_name = [_by_name_text(groups[n], known[n], totals) for n in fold.partners]
            lines.append(partners_line(fold, groups, by_name))
        if fold.others:
            lines.append(alike_line(fold, groups, impacts))
    return "\n".join(wrapped(lines, width))


_SAYS: Mapping[GroupVerdict, str] = {"removable": "Note", "with_calibration": "Needs calibration", "critical": "Reason"}
_OWN = (
    "  Impact Score: ",
    "  Impact Interval: ",
    "  Parameters: ",
    "  MACs: ",
)  # of similar groups, compared by number


def _group_lines(number: int, group: Group, facts: Facts, totals: Totals) -> list[str]:
    lines = [
        f"Group {number}: {HEADINGS[group.verdict]}",
        f"  Lead Transform: {group.lead_transform.name} ({group.lead_transform.type_name})",
        f"  Type: {group.type}",
        f"  Impact Score: {impact_text(group.impact)}",
        f"  Parameters: {amount_text(group.num_params, totals.num_params)}",
        *_price_lines(group, facts, totals),
        f"  Layers ({len(group.layers)}):",
    ]
    for place, layer in enumerate(group.layers):
        lines.append(f"    {'→' if place else '★'} {layer}{_mark(layer, facts.kept)}")
    if group.reason:
        lines.append(f"  {_SAYS[group.verdict]}: {group.reason}")
    if group.needs_calibration and group.can_remove:
        lines.append("  Needs calibration: a projection takes its place, which is fitted on calibration data")
    if facts.interval is not None:
        low, high = map(impact_text, facts.interval)
        lines.append(f"  Impact Interval: {low} to {high} (holds in about 90 % of cases)")
    return lines


def _price_lines(group: Group, facts: Facts, totals: Totals) -> list[str]:
    if group.verdict == "critical":
        return []
    lines = [f"  Removes: {amount_text(group.num_removed, totals.num_params)}{_along(group.leaves_with)}"]
    if facts.macs is not None:
        lines.append(f"  MACs: {amount_text(round(facts.macs), totals.macs or 0)}")
    if by_name := _by_name_text(group, facts, totals):
        lines.append(f"  By name: {by_name}")
    return lines


def _by_name_text(group: Group, facts: Facts, totals: Totals) -> str:
    """What leaves when the group is named; empty where that is the removal of least impact."""
    if facts.by_name is None:
        return ""
    removal = facts.by_name
    others = tuple(name for name in removal.groups if name != group.name)
    size = amount_text(removal.num_params, totals.num_params)
    return f"{size}{_along(others)}, impact {impact_text(removal.impact)}"


_NAMED = 8  # number of groups named


def _along(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" with {', '.join(names[:_NAMED])}{more}" if names else ""


def _mark(layer: LayerInfo, kept: frozenset[str]) -> str:
    return " [kept]" if layer.name in kept else ""


def summary_text(
    groups: Sequence[Group],
    totals: Totals,
    most: int,
    is_predicted: bool,
    impact_unit: str,
    notes: Sequence[str],
    *,
    width: int = WIDTH,
) -> str:
    """Render the lines below the groups; ``is_predicted`` says that ``most`` parameters come without a proof."""
    up_to = "up to " if is_predicted else ""
    count = Counter(group.verdict for group in groups)
    found = f"{count['removable']} safe to remove now, {count['with_calibration']} with calibration data"
    lines = [
        "PRUNING SUMMARY:",
        rule(width),
        f"Total parameters: {totals.num_params:,}",
        f"Groups: {len(groups)} ({found}, {count['critical']} critical)",
        f"Parameters that can leave now, together: {up_to}{amount_text(most, totals.num_params)}",
        f"Impact: {impact_unit}",
        *(f"Note: {note}" for note in notes),
    ]
    return "\n".join(wrapped(lines, width))


def plan_text(plan: PruningPlan, held_out: HeldOutVerdict | None = None, *, width: int = WIDTH) -> str:
    """Render a plan's removals, figures and frontier, and the held-out verdict once the plan was applied."""
    lines = [
        "CHOSEN REMOVALS:",
        rule(width),
        *(_removal_line(removal, bool(plan.rounds)) for removal in plan.removals),
        f"Parameters: {plan.num_params_before:,} → {plan.num_params_after:,} ({-plan.reduction:+.1%})",
        *figure_lines(plan),
        *_left_lines(plan),
        *([] if held_out is None else str(held_out).splitlines()),
        f"Strategy: {plan.strategy}",
        *(f"Note: {note}" for note in plan.notes),
        *_frontier_lines(plan, width),
    ]
    return "\n".join(wrapped(lines, width))


def figure_lines(plan: PruningPlan) -> list[str]:
    """MACs, latency and memory before and after, where a budget limits them, and the measured impact."""
    lines = [f"{each.label}: {each.change}" for each in plan.figures]
    if plan.impact_together is not None:
        total = sum(removal.impact or 0.0 for removal in plan.removals)
        lines.append(f"Impact of all together, measured: {plan.impact_together:.4g} (sum of each alone: {total:.4g})")
    return lines


def _left_lines(plan: PruningPlan) -> list[str]:
    left = [name for removal in plan.removals for name in removal.leftovers]
    named = ", ".join([*left[:3], "…"] if len(left) > 3 else left)
    lines = [f"Left over: {len(left)} of the functions around what goes: {named}"] if left else []
    if plan.needs_layerprune:
        lines.append("Load it with layerprune.load_pruned: stand-ins take the places of what goes")
    return lines


def _removal_line(removal: PlannedRemoval, in_rounds: bool) -> str:
    impact = impact_text(removal.impact)
    if removal.impact_interval is not None:
        impact += f" [{', '.join(map(impact_text, removal.impact_interval))}]"
    again = "" if removal.recurrence is None else f", in {removal.recurrence:.0%} of draws"
    name = f"round {removal.round}: {removal.name}" if in_rounds else removal.name
    return f"  {name} [{', '.join(removal.groups)}]: {removal.num_params:,} parameters, impact {impact}{again}"


def _frontier_lines(plan: PruningPlan, width: int) -> list[str]:
    """The frontier as table rows of size and impact, with as many columns as fit."""
    if not plan.frontier:
        return []
    sizes = [f"{point.reduction:.1%}" for point in plan.frontier]
    impacts = [f"{point.impact:.3g}" for point in plan.frontier]
    widths = [max(len(a), len(b)) for a, b in zip(sizes, impacts, strict=True)]
    lines = ["Frontier (least sum of impacts for every size, predicted):"]
    start = 0
    while start < len(widths):
        stop = start + 1
        while stop < len(widths) and 8 + sum(w + 2 for w in widths[start : stop + 1]) <= width:
            stop += 1
        some = slice(start, stop)
        for name, cells in (("removed ", sizes[some]), ("impact  ", impacts[some])):
            lines.append(f"  {name}{'  '.join(c.rjust(w) for c, w in zip(cells, widths[some], strict=True))}")
        start = stop
    return lines
