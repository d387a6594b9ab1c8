"""The frontier: the least impact for each size, the chosen point, and a slider over the sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerprune.html.markup import Markup, element
from layerprune.html.plot import Line, PlotPoint, line_plot
from layerprune.html.report_data import FrontierSet, ReportData
from layerprune.html.sections import section
from layerprune.report import impact_text

_PREDICTED = (
    "The least sum of impacts for each size. The sums are predictions, and the sets are checked on the layer graph "
    "only: a plan proves and, with calibration data, measures its set."
)


def frontier_section(data: ReportData) -> Markup | None:
    """The plot, the slider and the table; None where impacts are not known."""
    sets = [each for each in data.sets if math.isfinite(each.impact)]
    if len(sets) < 2:
        return None
    has_groups = bool(data.groups) and any(each.groups for each in sets)
    parts = [element("div", _plot(sets, data), _slider(data) if has_groups else None, class_="two"), _table(sets)]
    return section("frontier", "How much for how little", parts, lead=_PREDICTED)


def _plot(sets: Sequence[FrontierSet], data: ReportData) -> Markup:
    numbered = [(number, each) for number, each in enumerate(data.sets, start=1) if each in sets and not each.is_plan]
    points = [(each.reduction, each.impact) for _, each in numbered]
    marks = [PlotPoint(label="this plan", x=each.reduction, y=each.impact) for each in sets if each.is_plan]
    if data.plan is not None and data.plan.impact_together is not None and marks:
        marks.append(PlotPoint(label="this plan, measured", x=data.plan.reduction, y=data.plan.impact_together))
    first, last = points[0], points[-1]
    label = (
        f"Least sum of impacts by share of parameters removed: {impact_text(first[1])} for {first[0]:.0%}, "
        f"{impact_text(last[1])} for {last[0]:.0%}. The table has all points."
    )
    return line_plot(
        [Line(label="least sum of impacts", points=points, has_dots=True, numbers=[n for n, _ in numbered])],
        label=label,
        x_label="parameters removed",
        y_label="impact",
        marks=marks,
        show_x=lambda value: f"{value:.0%}",
    )


def _slider(data: ReportData) -> Markup:
    """A slider whose script marks the groups that leave at each size, in the picture, the strip and the table."""
    start = next((place for place, each in enumerate(data.sets, start=1) if each.is_plan), 0)
    return element(
        "div",
        element("label", "Size to remove", for_="size"),
        element(
            "input",
            type="range",
            id="size",
            min="0",
            max=len(data.sets),
            step="1",
            value=start,
            aria_describedby="size-lead",
        ),
        element("output", id="size-text", for_="size", aria_live="polite"),
        element("ul", id="size-groups", class_="chips"),
        element("p", "The picture, the strip and the table mark what leaves.", class_="fine", id="size-lead"),
        class_="slider needs-script",
    )


def set_text(each: FrontierSet) -> str:
    """A set in words: its share of the parameters and MACs, the sum of impacts, the number of groups."""
    macs = "" if each.mac_reduction is None else f", {-each.mac_reduction:+.1%} MACs"
    impact = "not known" if math.isnan(each.impact) else impact_text(each.impact)
    who = "This plan: " if each.is_plan else ""
    num = f"{len(each.groups)} {'group leaves' if len(each.groups) == 1 else 'groups leave'}"
    return f"{who}{-each.reduction:+.1%} parameters{macs}; sum of impacts {impact}; {num}"


def _table(sets: Sequence[FrontierSet]) -> Markup:
    has_macs = any(each.mac_reduction is not None for each in sets)
    heads = ["Parameters", *(["MACs"] if has_macs else []), "Sum of impacts", "Groups", ""]
    rows: list[Markup] = []
    for each in sets:
        cells = [f"{-each.reduction:+.1%}"]
        if has_macs:
            cells.append("—" if each.mac_reduction is None else f"{-each.mac_reduction:+.1%}")
        cells += [impact_text(each.impact), str(len(each.groups)) if each.groups else "—"]
        cells.append("this plan" if each.is_plan else "")
        rows.append(element("tr", [element("td", cell) for cell in cells]))
    head = element("tr", [element("th", text, scope="col") if text else element("td") for text in heads])
    table = element("table", element("thead", head), element("tbody", rows))
    return element("details", element("summary", "The frontier as a table"), table)
