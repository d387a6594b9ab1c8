"""Draws a picture as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from layerprune.picture.assets import STYLE
from layerprune.picture.impact_scale import impact_scale, impact_text
from layerprune.picture.layered import Point
from layerprune.picture.layout import (
    NAME_SIZE,
    PADDING,
    SMALL_SIZE,
    TITLE,
    TOGGLE,
    Placement,
    box_text,
    lay_out,
    region_title,
    repeat_title,
)
from layerprune.picture.records import Box, Cells, Picture, PictureGroup, Region, Repeat, groups_in
from layerprune.picture.text_width import clipped, text_width

_MARGIN = 8
_VERDICTS = {"removable": "can go", "with_calibration": "needs calibration data", "critical": "critical"}


def to_svg(picture: Picture, *, standalone: bool = True) -> str:
    """Draw a picture.

    Args:
        picture: what to draw.
        standalone: put the style into the SVG; False where the page around it holds it.

    Returns:
        An ``svg`` element. A group's shapes have ``data-group``, its place in the picture's groups, and a region's
        frame has ``data-module``, the module's name.
    """
    placement = lay_out(picture.root)
    width, height = placement.width + 2 * _MARGIN, placement.height + 2 * _MARGIN
    drawing = _Drawing(picture)
    drawing.block(placement, _MARGIN, _MARGIN, slots=None)
    style = f"<style>{STYLE}</style>" if standalone else ""
    namespace = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    goes = sum(group.goes for group in picture.groups)
    label = f"{picture.model}: {len(picture.groups)} groups of layers" + (f", {goes} go" if goes else "")
    return (
        f'<svg{namespace} class="lp-svg" viewBox="0 0 {_n(width)} {_n(height)}" '
        f'width="{_n(width)}" height="{_n(height)}" role="tree" aria-label="{_attribute(label)}">'
        f"{style}{_DEFS}{''.join(drawing.parts)}</svg>"
    )


_DEFS = (
    '<defs><pattern id="lp-hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="lp-hatch-ground" width="6" height="6"/><path class="lp-hatch-line" d="M0 0V6"/></pattern></defs>'
)


class _Slots:
    """Numbers the groups of a block that is drawn for all blocks like it."""

    def __init__(self, start: int = 0) -> None:
        self.used = start

    def next(self) -> int:
        self.used += 1
        return self.used - 1


class _Drawing:
    """The parts of the SVG, in order of drawing."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.scale = impact_scale(picture.groups)
        self.parts: list[str] = []

    def block(self, placement: Placement, x: float, y: float, slots: _Slots | None, *, is_shown: bool = False) -> None:
        """Draw a block with its upper left corner at (x, y).

        ``slots`` numbers the groups of a block that stands for all its repeats; ``is_shown`` says that it is one.
        """
        block = placement.block
        if isinstance(block, Box):
            self._box(block, placement, x, y, slots)
            return
        if isinstance(block, Region):
            kind, title, name, full = "region", region_title(block), block.name, block.name or self.picture.model
        elif isinstance(block, Cells):
            kind, title, name, full = "cells", region_title(block), block.name, f"{block.name} {block.label}".strip()
        else:
            kind, title, name = "repeat", repeat_title(block), ""
            full = f"{title}, each reads earlier ones" if block.reads_earlier else title
        module = "" if isinstance(block, Repeat) else f' data-module="{_attribute(name)}"'
        if placement.columns:
            rects = (f"{_n(x + c.x)} {_n(y + c.y)} {_n(c.width)} {_n(c.height)}" for c in placement.columns)
            module += f' data-columns="{";".join(rects)}"'
        if is_shown:
            module += f' data-label="{_attribute(block.label)}"' if not isinstance(block, Repeat) else ""
        num = len(groups_in(block))
        about = f"{full}, {num} group{'' if num == 1 else 's'}"
        self.parts.append(
            f'<g class="lp-{kind}" role="treeitem" aria-label="{_attribute(about)}"{module}>'
            f'<rect class="lp-frame" x="{_n(x)}" y="{_n(y)}" width="{_n(placement.width)}" '
            f'height="{_n(placement.height)}" rx="8"/>'
        )
        self._title(title, full, placement, x, y)
        self._edges(placement, x, y)
        self.parts.append('<g role="group">')
        first = _Slots(slots.used) if slots is not None else None
        for inner in placement.inner:
            own = _Slots() if isinstance(block, Repeat) and slots is None else slots
            self.block(inner, x + inner.x, y + inner.y, own, is_shown=isinstance(block, Repeat))
        self._cells(placement, x, y, first)
        if slots is not None and first is not None:
            slots.used = max(slots.used, first.used)
        self.parts.append("</g></g>")

    def _title(self, title: str, full: str, placement: Placement, x: float, y: float) -> None:
        """The title lies where no edge comes in."""
        ends = [PADDING, *(end for entry in sorted(placement.entries) for end in (entry - 6, entry + 6))]
        ends.append(placement.width - PADDING)
        rooms = [(b - a - TOGGLE, -a) for a, b in zip(ends[::2], ends[1::2], strict=True)]
        if isinstance(placement.block, Cells):
            rooms = [(placement.width - 2 * PADDING, -PADDING)]
        short = title if isinstance(placement.block, Repeat) else placement.block.label
        fitting = ((room, text) for text in (title, short) for room in rooms if text_width(text, SMALL_SIZE) <= room[0])
        (room, start), text = next(fitting, (max(rooms), short))
        text = clipped(text, SMALL_SIZE, room)
        hint = f"<title>{_text(full)}</title>"
        self.parts.append(
            f'<text class="lp-title" x="{_n(x - start)}" y="{_n(y + TITLE - 6)}">{_text(text)}{hint}</text>'
        )

    def _edges(self, placement: Placement, x: float, y: float) -> None:
        if not (placement.lines or placement.rail_lines):
            return
        paths = [_path(line, x, y) for line in placement.lines]
        heads = [_head(x + line[-1][0], y + line[-1][1]) for line in placement.lines if _ends_at_box(line, placement)]
        if placement.rail is not None:
            rail = x + placement.rail
            ys: list[float] = []
            for line in placement.rail_lines:
                (from_x, from_y), (to_x, to_y) = line.start, line.end
                paths.append(f"M{_n(x + from_x)} {_n(y + from_y)}V{_n(y + line.leaves)}H{_n(rail)}")
                paths.append(f"M{_n(rail)} {_n(y + line.enters)}H{_n(x + to_x)}V{_n(y + to_y)}")
                heads.append(_head(x + to_x, y + to_y))
                ys += [y + line.leaves, y + line.enters]
            paths.append(f"M{_n(rail)} {_n(min(ys))}V{_n(max(ys))}")
        self.parts.append(f'<path class="lp-edge" aria-hidden="true" d="{"".join(dict.fromkeys(paths))}"/>')
        if heads:
            self.parts.append(f'<path class="lp-head" aria-hidden="true" d="{"".join(dict.fromkeys(heads))}"/>')

    def _box(self, box: Box, placement: Placement, x: float, y: float, slots: _Slots | None) -> None:
        width, height = placement.width, placement.height
        slot = f' data-slot="{slots.next()}"' if slots is not None and box.group is not None else ""
        if box.group is None:
            classes, data = f"lp-box lp-{box.kind}", ""
            title = f"{box.name}: {box.detail}" if box.detail else box.name
            cross = ""
        else:
            group = self.picture.groups[box.group]
            classes = f"lp-box lp-group {self.scale.class_of(group)}{' goes' if group.goes else ''}"
            data, title = f' data-group="{box.group}"', _about(group)
            cross = _badge(width) if group.goes else ""
        if box.num_calls > 1:
            title += f", called {box.num_calls} times"
        corner = height / 2 if box.kind in ("merge", "concat", "input", "output", "attention") else 5
        self.parts.append(
            f'<g class="{classes}" role="treeitem"{data}{slot} '
            f'transform="translate({_n(x)} {_n(y)})"><title>{_text(title)}</title>'
            f'<rect width="{_n(width)}" height="{_n(height)}" rx="{_n(corner)}"/>{_box_lines(box, width)}{cross}</g>'
        )

    def _cells(self, placement: Placement, x: float, y: float, slots: _Slots | None) -> None:
        is_repeat = isinstance(placement.block, Repeat)
        labels = _labels_as_shown(placement.block) if isinstance(placement.block, Repeat) else ()
        for row, label in enumerate(placement.labels):
            name = _attribute(labels[row])
            self.parts.append(
                f'<text class="lp-row" data-row="{row}" data-label="{name}" aria-hidden="true" x="{_n(x + label.x)}" '
                f'y="{_n(y + label.y)}">{_text(label.text)}</text>'
            )
        for cell in placement.cells:
            group = self.picture.groups[cell.group]
            slot = f' data-slot="{slots.next()}"' if slots is not None else ""
            row = f' data-row="{cell.row}"' if is_repeat else ""
            goes = " goes" if group.goes else ""
            self.parts.append(
                f'<g class="lp-cell {self.scale.class_of(group)}{goes}" role="treeitem" '
                f'data-group="{cell.group}"{slot}{row} transform="translate({_n(x + cell.x)} {_n(y + cell.y)})">'
                f'<title>{_text(_about(group))}</title><rect width="{_n(cell.width)}" height="{_n(cell.height)}" '
                f'rx="2"/>{_cross(cell.width, cell.height) if group.goes else ""}</g>'
            )


def _labels_as_shown(block: Repeat) -> list[str]:
    """The names of the blocks, as the drawn block would be titled in their place."""
    front = len(block.labels[0]) - len(block.shown.label)
    return [label[front:] for label in block.labels]


def _about(group: PictureGroup) -> str:
    parts = [f"{group.name}: {group.type_name}", _VERDICTS[group.verdict]]
    if group.verdict == "removable":
        parts.append(f"impact {impact_text(group.impact)}")
    parts.append(f"{group.num_params:,} parameters")
    if group.goes:
        parts.append("goes in the plan")
    return ", ".join(parts)


def _box_lines(box: Box, width: float) -> str:
    middle = _n(width / 2)
    if box.kind == "merge":
        return f'<text class="lp-sign" x="{middle}" y="16">{_sign(box)}</text>'
    if box.kind not in ("group", "embedding"):
        text = clipped(box_text(box), SMALL_SIZE, width - 12)
        return f'<text class="lp-small" x="{middle}" y="15.5">{_text(text)}</text>'
    name = clipped(box.label, NAME_SIZE, width - 20)
    detail = clipped(box.detail + (f" ×{box.num_calls}" if box.num_calls > 1 else ""), SMALL_SIZE, width - 20)
    return (
        f'<text class="lp-name" x="{middle}" y="16">{_text(name)}</text>'
        f'<text class="lp-small" x="{middle}" y="30">{_text(detail)}</text>'
    )


def _sign(box: Box) -> str:
    words = box.detail.split(", ")
    if any(word.strip("_").removeprefix("i") in ("mul", "multiply") for word in words):
        return "×"
    return "+" if any("add" in word or word == "sum" for word in words) else "∘"


def _badge(width: float) -> str:
    x = width - 2
    return f'<g class="lp-cross"><circle cx="{_n(x)}" cy="2" r="7.5"/><path d="M{_n(x - 3)} -1l6 6m0 -6l-6 6"/></g>'


def _cross(width: float, height: float) -> str:
    return f'<path class="lp-cross" d="M2 2L{_n(width - 2)} {_n(height - 2)}M{_n(width - 2)} 2L2 {_n(height - 2)}"/>'


def _path(line: Sequence[Point], x: float, y: float) -> str:
    points = [(x + px, y + py) for px, py in line]
    parts = [f"M{_n(points[0][0])} {_n(points[0][1])}"]
    for number, ((ax, ay), (bx, by)) in enumerate(pairwise(points)):
        if abs(ax - bx) < 0.5:
            parts.append(f"V{_n(by)}")
        elif abs(ay - by) < 0.5:
            parts.append(f"H{_n(bx)}")
        elif number % 2:
            half = _n((ay + by) / 2)
            parts.append(f"C{_n(ax)} {half} {_n(bx)} {half} {_n(bx)} {_n(by)}")
        else:
            parts.append(f"L{_n(bx)} {_n(by)}")
    return "".join(parts)


def _head(x: float, y: float) -> str:
    return f"M{_n(x)} {_n(y)}l-3.5 -6h7z"


def _ends_at_box(line: Sequence[Point], placement: Placement) -> bool:
    """Whether an edge ends at a box; where it ends at a frame it goes on inside, or outside."""
    x, y = line[-1]
    return any(
        abs(inner.y - y) < 0.5 and inner.x <= x <= inner.x + inner.width and isinstance(inner.block, (Box, Cells))
        for inner in placement.inner
    )


def _n(value: float) -> str:
    """A coordinate in few characters."""
    return f"{value:.1f}".removesuffix(".0").replace("-0.0", "0")


def _text(text: str) -> str:
    return escape(_printable(text), quote=False)


def _attribute(text: str) -> str:
    return escape(_printable(text), quote=True)


def _printable(text: str) -> str:
    """Without control characters and halves of surrogate pairs, which XML does not allow."""
    return "".join(char if char.isprintable() or char == " " else "\N{REPLACEMENT CHARACTER}" for char in text)
