"""The table of groups: impact bars with intervals, sizes, and what leaves now."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerprune.graph import Group
from layerprune.html.markup import Markup, element
from layerprune.html.plot import Axis
from layerprune.html.report_data import ReportData
from layerprune.html.table import scrolled_table
from layerprune.report import Facts, amount_text, impact_text, short_number

#: Steps of the colour ramp of impacts.
NUM_STEPS = 8

#: Instead of an impact.
_VERDICTS = {"with_calibration": "needs calibration data", "critical": "stays"}

#: Key, heading and order of the columns that can be sorted; the key is the place among a row's sort values.
_COLUMNS = (("order", "Group"), ("impact", "Impact"), ("params", "Own parameters"), ("removed", "Removes"))


def impact_axis(data: ReportData) -> Axis:
    """The axis of all finite impacts and their intervals; logarithmic where they are of different orders."""
    values = [group.impact for group in data.groups if math.isfinite(group.impact)]
    ends = [end for facts in data.facts.values() for end in facts.interval or () if end > 0]
    return Axis.over([*values, *(ends if all(value > 0 for value in values) else ())])


def impact_step(impact: float, axis: Axis) -> int | None:
    """The step of the colour ramp of an impact, in ``range(NUM_STEPS)``; None where it is not known."""
    return min(int(axis.share(impact) * NUM_STEPS), NUM_STEPS - 1) if math.isfinite(impact) else None


def group_table(data: ReportData) -> Markup:
    """All groups, one a row, by impact, with a button that opens the group's card."""
    axis = impact_axis(data)
    has_macs = any(facts.macs is not None for facts in data.facts.values())
    columns = [*_COLUMNS, *([("macs", "MACs")] if has_macs else [])]
    order = {name: place for place, name in enumerate(g.name for g in sorted(data.groups, key=lambda g: g.members))}
    heads = [element("th", _sort_button(heading, key), scope="col", class_=f"c-{key}") for key, heading in columns]
    heads.append(element("th", "Now", scope="col"))
    leaving = data.planned_groups
    rows = [
        _row(number, group, data, axis, order[group.name], has_macs=has_macs, leaves=group.name in leaving)
        for number, group in enumerate(data.groups)
    ]
    caption = "Groups by impact, least first." + (" Bars have a logarithmic scale." if axis.is_log else "")
    return scrolled_table(caption, heads, rows, class_="groups", id_="groups-table")


def _sort_button(heading: str, key: str) -> Markup:
    return element("button", heading, type="button", class_="sort", data_sort=key)


def _row(
    number: int, group: Group, data: ReportData, axis: Axis, order: int, *, has_macs: bool, leaves: bool
) -> Markup:
    facts, total = data.facts.get(group.name, Facts()), data.num_params
    critical = group.verdict == "critical"
    sort_values = (order, group.impact, group.num_params, group.num_removed, facts.macs or 0)
    cells = [
        element("th", element("button", group.name, type="button", class_="name open"), scope="row"),
        element("td", _bar(group.impact, facts, axis), _impact(group, facts), class_="impact"),
        element("td", amount_text(group.num_params, total), class_="num"),
        element("td", "stays" if critical else amount_text(group.num_removed, total), class_="num"),
    ]
    if has_macs:
        cells.append(element("td", _macs(facts, data), class_="num"))
    cells.append(element("td", "leaves" if leaves else "", class_="now"))
    return element(
        "tr",
        cells,
        data_group=number,
        data_sort=",".join(_sort_value(value) for value in sort_values),
        class_=" ".join(filter(None, [group.verdict, "leaves" if leaves else ""])),
    )


def _sort_value(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else "1e999" if value > 0 else "1e300"


def _impact(group: Group, facts: Facts) -> Markup:
    if group.verdict != "removable":
        return element("span", _VERDICTS[group.verdict], class_="figure")
    interval = None
    if facts.interval is not None:
        interval = element("span", f" [{', '.join(map(impact_text, facts.interval))}]", class_="interval")
    return element("span", impact_text(group.impact), interval, class_="figure")


def _bar(impact: float, facts: Facts, axis: Axis) -> Markup | None:
    step = impact_step(impact, axis)
    if step is None:
        return None
    paths = [element("path", d=f"M0 5H{100 * axis.share(impact):.1f}", class_=f"bar h{step}")]
    if facts.interval is not None:
        low, high = (100 * axis.share(end) for end in facts.interval)
        paths.append(element("path", d=f"M{low:.1f} 5H{high:.1f}M{low:.1f} 2V8M{high:.1f} 2V8", class_="whisker"))
    return element("svg", paths, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true", class_="bars")


def _macs(facts: Facts, data: ReportData) -> str:
    total = None if data.screen is None else data.screen.totals.macs
    if facts.macs is None or not total:
        return "—"
    return f"{short_number(facts.macs)} ({facts.macs / total:.1%})"


# ---- the same by depth -----------------------------------------------------------------------------------------------


def by_depth(groups: Sequence[Group]) -> list[int]:
    """The numbers of groups in order of execution."""
    return sorted(range(len(groups)), key=lambda number: groups[number].members)
