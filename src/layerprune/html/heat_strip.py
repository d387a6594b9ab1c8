"""The heat strip: impact by depth, a cell per group, in one row or in a row per layer of a repeated block."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from layerprune.graph import Group
from layerprune.html.group_table import by_depth
from layerprune.html.markup import Markup, element
from layerprune.html.report_data import ReportData
from layerprune.picture import NUM_CLASSES, ImpactScale, impact_scale
from layerprune.report import impact_text

_FEWEST = 12  # groups: fewer need no strip
_MOST_ROWS = 24  # of the form with a row per layer of a block
_FEWEST_BLOCKS = 3
_COVERED = 0.6  # least share of the groups that lie in blocks


def heat_strip(data: ReportData) -> Markup | None:
    """Impacts in order of execution; None for a network that is not deep."""
    if data.picture is None or len(data.groups) < _FEWEST:
        return None
    scale = impact_scale(data.picture.groups)
    classes = [scale.class_of(group) for group in data.picture.groups]
    rows, columns = block_rows(data.groups)
    if not rows:
        rows, columns = {"": by_depth(data.groups)}, []
    lines: list[Markup] = []
    width = max(len(cells) for cells in rows.values())
    for name, cells in rows.items():
        squares = [_cell(place, number, classes[number]) for place, number in enumerate(cells) if number is not None]
        svg = element(
            "svg",
            squares,
            viewBox=f"0 0 {width} 1",
            preserveAspectRatio="none",
            class_="strip",
            aria_hidden="true",
            focusable="false",
        )
        lines.append(element("div", element("span", name, class_="name row-name") if name else None, svg, class_="row"))
    first, last = (columns[0], columns[-1]) if columns else ("first", "last")
    ends = element("div", element("span", first), element("span", "depth →"), element("span", last), class_="ends")
    label = (
        f"Impact of {len(data.groups)} groups in order of execution. The table of groups has the same figures as text."
    )
    shape = "strips blocks" if columns else "strips"
    strips = element("div", lines, ends, class_=shape, role="img", aria_label=label)
    return element("div", strips, _legend(scale, set(classes)), class_="heat lp-colors")


def _cell(place: int, number: int, color: str) -> Markup:
    """A cell, in the class of the picture's groups of that impact."""
    return element("rect", class_=color, x=place, data_group=number)


def _legend(scale: ImpactScale, classes: Collection[str]) -> Markup:
    """The colours of the impacts, of groups that stay, and of those whose impact is not known."""
    keys: list[Markup] = []
    if math.isfinite(scale.low):
        swatches = [element("i", class_=f"lp-key i{number}") for number in range(NUM_CLASSES)]
        low, high = impact_text(scale.low), impact_text(scale.high)
        keys.append(element("span", "impact ", low, " ", swatches, " ", high))
    said = {"critical": " stays", "calibration": " needs calibration data", "unknown": " impact not known"}
    keys += [element("span", element("i", class_=f"lp-key {n}"), text) for n, text in said.items() if n in classes]
    return element("p", keys, class_="ramp")


def block_rows(groups: Sequence[Group]) -> tuple[dict[str, list[int | None]], list[str]]:
    """Numbers of groups by layer of a repeated block, a column per block; empty where there are no such blocks.

    ``model.layers.3.mlp.up_proj`` lies in the block ``model.layers.3``, in the row ``mlp.up_proj``.
    """
    parts = {number: split_name(groups[number].name) for number in by_depth(groups)}
    inside = {number: part for number, part in parts.items() if part is not None}
    columns = list(dict.fromkeys(block for block, _ in inside.values()))
    names = list(dict.fromkeys(row for _, row in inside.values()))
    if len(inside) < _COVERED * len(groups) or len(columns) < _FEWEST_BLOCKS or not 2 <= len(names) <= _MOST_ROWS:
        return {}, []
    rows: dict[str, list[int | None]] = {name: [None] * len(columns) for name in names}
    for number, (block, row) in inside.items():
        rows[row][columns.index(block)] = number
    return rows, columns


def split_name(name: str) -> tuple[str, str] | None:
    """The block and the rest of a name, behind its first numbers; None where nothing follows a number."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdecimal() and not parts[place + 1].isdecimal():
            return ".".join(parts[: place + 1]), ".".join(parts[place + 1 :])
    return None
