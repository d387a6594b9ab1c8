"""The table of groups: impact bars with intervals, sizes, and what leaves now."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerprune.graph import Group
from layerprune.html.markup import Content, Markup, element
from layerprune.html.plot import Axis
from layerprune.html.report_data import ReportData
from layerprune.html.table import scrolled_table
from layerprune.report import Facts, amount_text, impact_text, short_number

#: Instead of an impact.
_VERDICTS = {"with_calibration": "needs calibration data", "critical": "stays"}

#: Key and heading of the columns that can be sorted: the first two by values of the row, others by what they show.
_COLUMNS = (("order", "Group"), ("impact", "Impact"), ("params", "Own parameters"), ("removed", "Removes"))


def impact_axis(data: ReportData) -> Axis:
    """The axis of all finite impacts and their intervals; logarithmic where they are of different orders."""
    values = [group.impact for group in data.groups if math.isfinite(group.impact)]
    ends = [end for facts in data.facts.values() for end in facts.interval or () if end > 0]
    return Axis.over([*values, *(ends if all(value > 0 for value in values) else ())])


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
        _row(group, data, axis, order[group.name], has_macs=has_macs, leaves=group.name in leaving)
        for group in data.groups
    ]
    caption = "Groups by impact, least first." + (" Bars have a logarithmic scale." if axis.is_log else "")
    return scrolled_table(caption, heads, rows, class_="groups", id_="groups-table")


def _sort_button(heading: str, key: str) -> Markup:
    return element("button", heading, type="button", class_="sort", data_sort=key)


def _row(group: Group, data: ReportData, axis: Axis, order: int, *, has_macs: bool, leaves: bool) -> Markup:
    """A row; the script knows it by its place. Classes are few, as there are many rows."""
    facts, total = data.facts.get(group.name, Facts()), data.num_params
    critical = group.verdict == "critical"
    cells = [
        element("th", element("button", group.name), scope="row"),
        element("td", _bar(group.impact, facts, axis), _impact(group, facts)),
        element("td", amount_text(group.num_params, total)),
        element("td", "stays" if critical else amount_text(group.num_removed, total)),
    ]
    if has_macs:
        cells.append(element("td", _macs(facts, data)))
    cells.append(element("td", "leaves" if leaves else ""))
    sort_values = f"{order},{_sort_value(group.impact)}"
    return element("tr", cells, data_sort=sort_values, class_="leaves" if leaves else "stays" if critical else None)


def _sort_value(value: float) -> str:
    return f"{value:.5g}" if math.isfinite(value) else "1e999" if value > 0 else "1e300"


def _impact(group: Group, facts: Facts) -> Content:
    if group.verdict != "removable":
        return _VERDICTS[group.verdict]
    if facts.interval is None:
        return impact_text(group.impact)
    return [impact_text(group.impact), element("small", f" [{', '.join(map(impact_text, facts.interval))}]")]


def _bar(impact: float, facts: Facts, axis: Axis) -> Markup | None:
    """A bar from 0, or from the axis' end, with a line over the interval."""
    if not math.isfinite(impact):
        return None
    shapes = [element("rect", width=_percent(axis.share(impact)))]
    if facts.interval is not None:
        low, high = (_percent(axis.share(end)) for end in facts.interval)
        shapes.append(element("line", x1=low, x2=high))
    return element("svg", shapes)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _macs(facts: Facts, data: ReportData) -> str:
    if facts.macs is None or not data.num_macs:
        return "—"
    return f"{short_number(facts.macs)} ({facts.macs / data.num_macs:.1%})"


# ---- the same by depth -----------------------------------------------------------------------------------------------


def by_depth(groups: Sequence[Group]) -> list[int]:
    """The numbers of groups in order of execution."""
    return sorted(range(len(groups)), key=lambda number: groups[number].members)
