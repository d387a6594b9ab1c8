"""Breaks a tall layout into columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from layerprune.picture.layered import RANK_GAP, Layout, Point

_SCREEN = (1200.0, 800.0)  # that the whole should fit on
_WORTH = 0.85  # another column must let the whole be drawn larger by the inverse of this
_MOST = 8  # columns
_FULL = 0.6  # of the tallest column's height: the least mean height of columns
_LANE = 8  # between edges that lead from column to column
_OVER = 14.0  # where they come in above a column, below the region's title
_LANE_OVER = 5  # between edges that come in above a column
_GUTTER = 22  # between columns, beside the lanes


@dataclass(frozen=True)
class Column:
    """A part of a region that starts again at the top: its rectangle."""

    x: float
    y: float
    width: float
    height: float


def in_columns(layout: Layout, sizes: Sequence[tuple[float, float]]) -> tuple[Layout, tuple[Column, ...]]:
    """Break a layout between ranks, where that lets it be drawn larger; no columns where it does not."""
    if layout.rail is not None or len(layout.ranks) < 3:
        return layout, ()
    extents = _extents(layout, sizes)
    best: tuple[float, list[int]] = (0.0, [0])
    for num in range(1, _MOST + 1):
        starts = _starts(layout, num)
        width, height = _size(layout, extents, starts)
        if layout.height < num * _FULL * height:
            continue  # most columns would be short
        scale = min(_SCREEN[0] / max(width, 1), _SCREEN[1] / max(height, 1), 1.0)
        best = max(best, (scale * _WORTH ** (num - 1), starts))
    if len(best[1]) == 1:
        return layout, ()
    return _Break(layout, extents, best[1]).make()


def _extents(layout: Layout, sizes: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Left and right end of what lies in each rank, bends included."""
    ends: list[list[float]] = [[] for _ in layout.ranks]
    for (x, _), (width, _), rank in zip(layout.corners, sizes, layout.rank_of, strict=True):
        ends[rank] += [x, x + width]
    tops = {top: rank for rank, (top, _) in enumerate(layout.ranks)}
    for line in layout.lines:
        for x, y in line:
            if y in tops:
                ends[tops[y]] += [x - 4, x + 4]
    return [(min(each, default=0.0), max(each, default=0.0)) for each in ends]


def _starts(layout: Layout, num: int) -> list[int]:
    """First ranks of ``num`` columns of about the same height."""
    low, high = max(bottom - top for top, bottom in layout.ranks), layout.height
    starts = [0]
    for _ in range(24):
        most = (low + high) / 2
        tried = _filled(layout, most)
        if len(tried) <= num:
            starts, high = tried, most
        else:
            low = most
    return starts


def _filled(layout: Layout, most: float) -> list[int]:
    starts = [0]
    for rank, (top, bottom) in enumerate(layout.ranks):
        is_exit = rank == len(layout.ranks) - 1 and top == bottom
        if bottom - layout.ranks[starts[-1]][0] > most and rank > max(starts[-1], 1) and not is_exit:
            starts.append(rank)
    return starts


def _spans(layout: Layout, starts: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(starts, [*starts[1:], len(layout.ranks)], strict=True))


def _size(layout: Layout, extents: Sequence[tuple[float, float]], starts: Sequence[int]) -> tuple[float, float]:
    width = height = 0.0
    for start, stop in _spans(layout, starts):
        own = extents[start:stop]
        width += max(b for _, b in own) - min(a for a, _ in own) + _GUTTER + 2 * _LANE
        height = max(height, layout.ranks[stop - 1][1] - layout.ranks[start][0])
    return width, height + RANK_GAP


class _Break:
    """A layout, the first ranks of its columns, and where each column comes to lie."""

    def __init__(self, layout: Layout, extents: Sequence[tuple[float, float]], starts: Sequence[int]) -> None:
        self.layout = layout
        self.starts = starts
        self.borders = [layout.ranks[start][0] for start in starts]
        self.crossing = [
            [i for i, line in enumerate(layout.lines) if line and line[0][1] < border <= line[-1][1]]
            for border in self.borders[1:]
        ]
        self.shifts: list[Point] = []
        self.columns: list[Column] = []
        x = 0.0
        for number, (start, stop) in enumerate(_spans(layout, starts)):
            own = extents[start:stop]
            left, right = min(a for a, _ in own), max(b for _, b in own)
            above = len(self.crossing[number - 1]) if number else 0
            top = RANK_GAP + _OVER + _LANE_OVER * (above - 1) if number else 0.0  # lines come in above
            self.shifts.append((x - left, top - layout.ranks[start][0]))
            lanes = len(self.crossing[number]) if number < len(self.crossing) else None
            width = right - left + (0.0 if lanes is None else _GUTTER + lanes * _LANE)
            self.columns.append(Column(x, 0.0, width, top + layout.ranks[stop - 1][1] - layout.ranks[start][0]))
            x += width
        self.width = x
        most_lanes = max(map(len, self.crossing))
        self.height = max(column.height for column in self.columns) + 12 + _LANE * most_lanes

    def make(self) -> tuple[Layout, tuple[Column, ...]]:
        layout = self.layout
        last = len(layout.ranks) - 1
        has_exit = layout.ranks[last][0] == layout.ranks[last][1]
        corners: list[Point] = []
        for (x, y), rank in zip(layout.corners, layout.rank_of, strict=True):
            to_x, to_y = self._shifted(x, y, self._column_of_rank(rank))
            corners.append((to_x, self.height if has_exit and rank == last else to_y))
        lines = [
            self._line(number, line, layout.ranks[last][0] if has_exit else None)
            for number, line in enumerate(layout.lines)
        ]
        ranks = [
            (top + self.shifts[c][1], bottom + self.shifts[c][1])
            for rank, (top, bottom) in enumerate(layout.ranks)
            if (c := self._column_of_rank(rank)) >= 0
        ]
        columns = tuple(replace(column, height=self.height) for column in self.columns)
        moved = replace(
            layout,
            width=self.width,
            height=self.height,
            corners=tuple(corners),
            lines=tuple(lines),
            ranks=tuple(ranks),
        )
        return moved, columns

    def _column_of_rank(self, rank: int) -> int:
        return sum(rank >= start for start in self.starts) - 1

    def _shifted(self, x: float, y: float, column: int) -> Point:
        return x + self.shifts[column][0], y + self.shifts[column][1]

    def _line(self, number: int, line: Sequence[Point], exit_y: float | None) -> tuple[Point, ...]:
        """An edge; from column to column it goes down, through the gutter to the top, and down again."""
        points: list[Point] = []
        before = 0
        for x, y in line:
            column = sum(y >= border for border in self.borders) - 1
            to_x, to_y = self._shifted(x, y, column)
            if exit_y is not None and y == exit_y:
                to_y = self.height
            for crossed in range(before + 1, column + 1) if points else ():
                lane = self.crossing[crossed - 1].index(number) * _LANE
                gutter, low = self.columns[crossed].x - 10 - lane, self.columns[crossed - 1].height + 8 + lane
                high = _OVER + _LANE_OVER * (len(self.crossing[crossed - 1]) - 1) - lane * _LANE_OVER / _LANE
                over = to_x if crossed == column else self.columns[crossed].x
                points += [(points[-1][0], low), (gutter, low), (gutter, high), (over, high)]
            before = column
            points.append((to_x, to_y))
        return tuple(points)
