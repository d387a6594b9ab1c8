"""Lays a picture out: sizes from the inside outward, then places from the outside inward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from layerprune.graph import numbers_in, without_numbers
from layerprune.picture.columns import Column, in_columns
from layerprune.picture.layered import Layout, Link, Point, layered
from layerprune.picture.records import Block, Box, Cells, Region, Repeat
from layerprune.picture.text_width import text_width

PADDING = 12  # between the frame of a region and what is inside
TITLE = 20  # height of a region's title
TOGGLE = 13  # width of the triangle that the script puts before a title
NAME_SIZE = 12  # of fonts
SMALL_SIZE = 10
TINY_SIZE = 9
BOX_HEIGHT = 38
LINE_HEIGHT = 24  # of boxes with one line
MERGE = 22  # diameter
CELL = 11  # width and height of a cell, with the gap to the next
_NARROWEST, _WIDEST = 88, 176
_WIDEST_LABEL = 110
_CELLS_IN_ROW = 12
_TALLEST = 700  # regions that are taller are broken into columns
_MOST_OF = 0.6  # of a region's height: a block that is so tall is broken instead of the region


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A group as a small square; ``row`` is its block, where blocks repeat."""

    group: int
    row: int
    x: float
    y: float
    width: float = CELL - 1
    height: float = CELL - 1


@dataclass(frozen=True)
class Label:
    """A small text at the right end of which ``x`` lies, on the base line ``y``."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class RailLine:
    """An edge along the rail: its ends, and the heights at which it leaves for the rail and comes back."""

    start: Point
    leaves: float
    enters: float
    end: Point


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A block with its place: all coordinates inside it count from its own upper left corner.

    Attributes:
        block: what is drawn.
        x: left end inside the placement around it.
        y: upper end inside the placement around it.
        inner: placements inside.
        lines: edges; see :class:`Layout`.
        rail_lines: edges along the rail.
        rail: x of the rail.
        entries: x of each place where tensors come in at the upper border.
        exit: x of the place where they leave at the lower border.
        cells: for repeated blocks and fields of cells.
        labels: names of the rows of cells.
        columns: where the inside is broken into columns.
    """

    block: Block
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0
    inner: tuple[Placement, ...] = ()
    lines: tuple[tuple[Point, ...], ...] = ()
    rail_lines: tuple[RailLine, ...] = ()
    rail: float | None = None
    entries: tuple[float, ...] = ()
    exit: float = 0.0
    cells: tuple[Cell, ...] = ()
    labels: tuple[Label, ...] = ()
    columns: tuple[Column, ...] = ()

    def entry(self, number: int) -> float:
        """Offset of an entry from the centre."""
        return self.entries[min(number, len(self.entries) - 1)] - self.width / 2 if self.entries else 0.0


def lay_out(root: Region) -> Placement:
    """Place everything; the model's upper left corner is (0, 0)."""
    return _place(root, may_break=True)


def _place(block: Block, *, may_break: bool = False) -> Placement:
    if isinstance(block, Box):
        return _box(block)
    if isinstance(block, Cells):
        return _cells(block)
    if isinstance(block, Repeat):
        return _repeat(block)
    return _region(block, may_break)


def _box(box: Box) -> Placement:
    if box.kind == "merge":
        width = height = float(MERGE)
    elif box.kind in ("group", "embedding"):
        name = text_width(box.label, NAME_SIZE) + 22
        width, height = max(name, text_width(box.detail, SMALL_SIZE) + 22), float(BOX_HEIGHT)
        width = min(max(width, _NARROWEST), _WIDEST)
    else:
        width = min(max(text_width(box_text(box), SMALL_SIZE) + 18, 52), _WIDEST)
        height = float(LINE_HEIGHT)
    width = round(width / 2) * 2
    return Placement(block=box, width=width, height=height, entries=(width / 2,), exit=width / 2)


def box_text(box: Box) -> str:
    """The text of a box with one line."""
    return {"concat": "concat", "attention": "attention"}.get(box.kind, box.label)


def _cells(block: Cells) -> Placement:
    num = len(block.groups)
    per_row = min(max(num, 1), _CELLS_IN_ROW)
    rows = -(-num // per_row)
    title = min(text_width(block.label, SMALL_SIZE) + 2 * PADDING, _WIDEST)
    width = max(per_row * CELL + 2 * PADDING - 1, title)
    cells = tuple(
        Cell(group=group, row=0, x=PADDING + i % per_row * CELL, y=TITLE + 4 + i // per_row * CELL)
        for i, group in enumerate(block.groups)
    )
    height = TITLE + 4 + rows * CELL + PADDING - 4
    return Placement(block=block, width=width, height=height, cells=cells, entries=(width / 2,), exit=width / 2)


def _repeat(block: Repeat) -> Placement:
    """The block that is shown at the left, a row of cells for each block at the right."""
    shown = _place(block.shown)
    num_rows, num_cells = len(block.columns), max(map(len, block.columns), default=0)
    texts = short_labels(block.labels)
    label_width = min(max((text_width(text, TINY_SIZE) for text in texts), default=0), 60)
    fitting = max(int((shown.height + 40) // CELL), 8)  # rows next to the block
    strips = max(-(-num_rows // fitting), 1)
    per_strip = -(-num_rows // strips)
    size = CELL if num_cells <= 16 else 7
    strip_width = label_width + 5 + num_cells * size + 12
    inner = replace(shown, x=PADDING, y=float(TITLE + 8))
    x0, y0 = PADDING + shown.width + 14, TITLE + 8
    cells: list[Cell] = []
    labels: list[Label] = []
    for row, groups in enumerate(block.columns):
        x, y = x0 + row // per_strip * strip_width + label_width + 5, y0 + row % per_strip * CELL
        labels.append(Label(texts[row], x - 5, y + CELL - 3))
        cells += [Cell(group=g, row=row, x=x + i * size, y=y, width=size - 1) for i, g in enumerate(groups)]
    has_cells = num_cells > 0
    grid = strips * strip_width if has_cells else 0.0
    title = text_width(repeat_title(block), SMALL_SIZE) + 2 * PADDING
    width = max(
        x0 + grid if has_cells else shown.width + 2 * PADDING, min(title, shown.width + 2 * PADDING + grid + 40)
    )
    width = round(width)
    height = max(inner.y + shown.height, y0 + per_strip * CELL if has_cells else 0) + PADDING
    entries = tuple(PADDING + entry for entry in shown.entries)
    lines = tuple(((x, 0.0), (x, inner.y)) for x in entries)
    way_out = PADDING + shown.exit
    lines += (((way_out, inner.y + shown.height), (way_out, height)),)
    return Placement(
        block=block,
        width=width,
        height=height,
        inner=(inner,),
        lines=lines,
        entries=entries,
        exit=way_out,
        cells=tuple(cells) if has_cells else (),
        labels=tuple(labels) if has_cells else (),
    )


def short_labels(labels: Sequence[str]) -> list[str]:
    """The numbers in which names of blocks differ; the names themselves where they differ in more."""
    numbers = [numbers_in([label]) for label in labels]
    if len({without_numbers(label) for label in labels}) > 1:
        return list(labels)
    varying = [place for place, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    return [".".join(str(own[place]) for place in varying) for own in numbers]


def repeat_title(block: Repeat) -> str:
    """``layers.0 … layers.31  ×32``."""
    return f"×{len(block.labels)}: {block.labels[0]} … {block.labels[-1]}"


def _region(region: Region, may_break: bool) -> Placement:
    inner = [_place(block) for block in region.blocks]
    sizes, links = _as_links(region, inner)
    num_in = region.num_entries
    last = num_in + len(inner) if region.has_exit else None
    layout = layered(sizes, links, first=range(num_in), last=last)
    columns: tuple[Column, ...] = ()
    if may_break and layout.height > _TALLEST:
        tallest = _tallest_alone(region, inner, layout)
        if tallest is None:
            layout, columns = in_columns(layout, sizes)
        else:  # it is broken in place of the region around it
            inner[tallest] = _place(region.blocks[tallest], may_break=True)
            sizes, links = _as_links(region, inner)
            layout = layered(sizes, links, first=range(num_in), last=last)
    return _framed(region, inner, layout, columns, sizes, links)


def _as_links(region: Region, inner: Sequence[Placement]) -> tuple[list[tuple[float, float]], list[Link]]:
    """The sizes of entries, blocks and exit, in this order, and the edges between them."""
    num_in, num = region.num_entries, len(inner)
    sizes = [(0.0, 0.0)] * num_in + [(p.width, p.height) for p in inner] + [(0.0, 0.0)] * region.has_exit
    links: list[Link] = []
    for edge in region.edges:
        source = -1 - edge.source if edge.source < 0 else num_in + edge.source
        out = 0.0 if edge.source < 0 else inner[edge.source].exit - inner[edge.source].width / 2
        into = 0.0 if edge.target == num else inner[edge.target].entry(edge.entry)
        links.append(Link(source, num_in + edge.target, out, into))
    return sizes, links


def _tallest_alone(region: Region, inner: Sequence[Placement], layout: Layout) -> int | None:
    """The region that is most of the height, with nothing beside it; None if there is none."""
    ranks = layout.rank_of[region.num_entries : region.num_entries + len(inner)]
    for place, (block, rank) in enumerate(zip(region.blocks, ranks, strict=True)):
        if isinstance(block, Region) and ranks.count(rank) == 1 and inner[place].height > _MOST_OF * layout.height:
            return place
    return None


def _framed(
    region: Region,
    inner: Sequence[Placement],
    layout: Layout,
    columns: Sequence[Column],
    sizes: Sequence[tuple[float, float]],
    links: Sequence[Link],
) -> Placement:
    num_in = region.num_entries
    title = text_width(region_title(region), SMALL_SIZE) + 2 * PADDING
    top = _top(layout, links, num_in)
    width = round(max(layout.width + 2 * PADDING, min(title, 150)))
    left = (width - layout.width) / 2
    spare = _missing_for_label(region.label, left, width, [layout.corners[i][0] for i in range(num_in)])
    left, width = left + spare, width + spare
    height = top + layout.height + (0 if region.has_exit else PADDING)
    placed = tuple(
        replace(p, x=left + layout.corners[num_in + i][0], y=top + layout.corners[num_in + i][1])
        for i, p in enumerate(inner)
    )
    lines = tuple(_from_border(line, left, top) for line in layout.lines if line)
    return Placement(
        block=region,
        width=width,
        height=height,
        inner=placed,
        lines=lines,
        rail=None if layout.rail is None else left + layout.rail,
        rail_lines=_rail_lines(layout, links, sizes, left, top),
        entries=tuple(left + layout.corners[i][0] for i in range(num_in)),
        exit=left + layout.corners[-1][0] if region.has_exit else width / 2,
        columns=tuple(replace(c, x=left + c.x, y=top + c.y) for c in columns),
    )


def _from_border(line: Sequence[Point], left: float, top: float) -> tuple[Point, ...]:
    """An edge with the offset of the inside; one that comes in begins at the upper border of the region."""
    (x, y), *rest = ((left + x, top + y) for x, y in line)
    return ((x, y if y > top else 0.0), *rest)


def _top(layout: Layout, links: Sequence[Link], num_entries: int) -> float:
    """Room above the first rank for the title; edges that come in may pass it where they go straight down."""
    if not num_entries:
        return TITLE + 8.0
    lines = (line for link, line in zip(links, layout.lines, strict=True) if link.source < num_entries)
    is_straight = layout.rail is None and all(line[0][0] == line[2][0] for line in lines if len(line) > 2)
    return 10.0 if is_straight else float(TITLE)


def _missing_for_label(label: str, left: float, width: float, entries: Sequence[float]) -> float:
    """How much wider a region must be, so that its name lies beside the edges that come in at the top."""
    if not entries:
        return 0.0
    needed = min(text_width(label, SMALL_SIZE), _WIDEST_LABEL) + PADDING + TOGGLE + 8
    return round(max(needed - max(left + min(entries), width - left - max(entries)), 0.0))


def _rail_lines(
    layout: Layout, links: Sequence[Link], sizes: Sequence[tuple[float, float]], left: float, top: float
) -> tuple[RailLine, ...]:
    if layout.rail is None:
        return ()
    found: dict[RailLine, None] = {}
    for link, line in zip(links, layout.lines, strict=True):
        if line:
            continue
        (x, y), (to_x, to_y) = layout.corners[link.source], layout.corners[link.target]
        (width, height), (to_width, _) = sizes[link.source], sizes[link.target]
        own = RailLine(
            start=(left + x + width / 2 + link.source_offset, top + y + height),
            leaves=top + layout.ranks[layout.rank_of[link.source]][1] + 7,
            enters=top + layout.ranks[layout.rank_of[link.target]][0] - 11,
            end=(left + to_x + to_width / 2 + link.target_offset, top + to_y),
        )
        found[own] = None
    return tuple(found)


def region_title(region: Region | Cells) -> str:
    """``layer1 · Sequential``; the class is left out where the name is the same."""
    name = region.label
    return f"{name} · {region.type_name}" if region.type_name and region.type_name != name else name
