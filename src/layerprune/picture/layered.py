"""Layered layout of blocks and the edges between them, from top to bottom (after Sugiyama et al. 1981).

Blocks get ranks by their longest way from a source; an edge over several ranks gets a bend in each rank between; ranks
are ordered by the mean place of their neighbours, and coordinates keep straight edges where they can.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP = 14  # between blocks of a rank
BEND_GAP = 12  # around the bend of an edge
RANK_GAP = 24  # between ranks
END_GAP = 14  # before the last rank, where that is an exit
_SWEEPS = 4
_PULLS = 24  # sweeps that set coordinates
_STRAIGHT = 8.0  # weight of edges between bends; one between a block and a bend has 1
_DIRECT = 4.0  # weight of edges from rank to rank
_MOST_BENDS = 8  # per block; more long edges are drawn along one rail

#: A point of an edge.
Point = tuple[float, float]


@dataclass(frozen=True)
class Link:
    """An edge between two blocks, with the offsets of its ends from the centres of the blocks."""

    source: int
    target: int
    source_offset: float = 0.0
    target_offset: float = 0.0


@dataclass(frozen=True)
class Layout:
    """Where blocks and edges lie.

    Attributes:
        width: from 0 to the right end of the last block or edge.
        height: from 0 to the lower end.
        corners: upper left corner of each block.
        lines: the points of each edge, from the source's lower to the target's upper border; between the points
            2k - 1 and 2k it may change its x, elsewhere it goes straight down. Empty for edges along the rail.
        rail: x of the rail; None without one.
        ranks: upper and lower end of each rank.
    """

    width: float
    height: float
    corners: tuple[Point, ...]
    lines: tuple[tuple[Point, ...], ...]
    rail: float | None
    ranks: tuple[tuple[float, float], ...]
    rank_of: tuple[int, ...]


@dataclass
class _Node:
    """A block or a bend."""

    width: float
    rank: int
    x: float = 0.0  # of the centre
    is_bend: bool = False
    up: list[tuple[int, float, float, float]] = field(default_factory=list[tuple[int, float, float, float]])
    down: list[tuple[int, float, float, float]] = field(default_factory=list[tuple[int, float, float, float]])


def layered(
    sizes: Sequence[tuple[float, float]], links: Sequence[Link], *, first: Iterable[int] = (), last: int | None = None
) -> Layout:
    """Lay blocks out.

    Args:
        sizes: width and height of each block.
        links: every link leads to a block of a higher number.
        first: blocks of the first rank, with nothing else in it; they come in at the top.
        last: the block of the last rank, with nothing else in it.
    """
    ranks = _ranks(len(sizes), links, frozenset(first))
    if last is not None:
        ranks[last] = max(rank for i, rank in enumerate(ranks) if i != last) + 1
    spans = [ranks[link.target] - ranks[link.source] for link in links]
    is_dense = sum(span - 1 for span in spans) > _MOST_BENDS * len(sizes) + 8
    on_rail = [is_dense and span > 1 for span in spans]
    nodes = [_Node(width, rank) for (width, _), rank in zip(sizes, ranks, strict=True)]
    ways = [[] if skip else _way(nodes, link) for link, skip in zip(links, on_rail, strict=True)]
    rows: list[list[int]] = [[] for _ in range(max(ranks, default=0) + 1)]
    for number, node in enumerate(nodes):
        rows[node.rank].append(number)
    _order(nodes, rows)
    _set_x(nodes, rows)
    left = min((node.x - node.width / 2 for node in nodes), default=0.0)
    for node in nodes:
        node.x = round(node.x - left, 1)
    heights = [max((sizes[i][1] for i in row if i < len(sizes)), default=0.0) for row in rows]
    tops: list[float] = []
    y = 0.0
    for rank, height in enumerate(heights):
        tops.append(y)
        is_end = last is not None and rank == ranks[last] - 1
        y += height + (END_GAP if is_end else RANK_GAP)
    bands = tuple((top, top + height) for top, height in zip(tops, heights, strict=True))
    right = max((node.x + node.width / 2 for node in nodes), default=0.0)
    corners = tuple(
        (nodes[i].x - width / 2, bands[ranks[i]][0] + (heights[ranks[i]] - height) / 2 * (len(rows[ranks[i]]) > 1))
        for i, (width, height) in enumerate(sizes)
    )
    lines = tuple(_line(link, way, nodes, corners, sizes, bands) for link, way in zip(links, ways, strict=True))
    rail = right + BEND_GAP if any(on_rail) else None
    return Layout(
        width=right if rail is None else rail + BEND_GAP / 2,
        height=bands[-1][1] if bands else 0.0,
        corners=corners,
        lines=lines,
        rail=rail,
        ranks=bands,
        rank_of=tuple(ranks),
    )


def _ranks(num: int, links: Sequence[Link], first: frozenset[int]) -> list[int]:
    """Longest way from a source; sources that are not ``first`` stand right above what reads them."""
    start = 1 if first else 0
    ranks = [0 if i in first else start for i in range(num)]
    has_source = set(first)
    for link in sorted(links, key=lambda link: (link.target, link.source)):
        ranks[link.target] = max(ranks[link.target], ranks[link.source] + 1)
        has_source.add(link.target)
    lowest: dict[int, int] = {}
    for link in links:
        lowest[link.source] = min(lowest.get(link.source, ranks[link.target]), ranks[link.target])
    for i in range(num):
        if i not in has_source and i in lowest:
            ranks[i] = max(lowest[i] - 1, start)
    return ranks


def _way(nodes: list[_Node], link: Link) -> list[int]:
    """Add the bends of a link, and return its nodes from source to target."""
    way = [link.source]
    for rank in range(nodes[link.source].rank + 1, nodes[link.target].rank):
        nodes.append(_Node(0.0, rank, is_bend=True))
        way.append(len(nodes) - 1)
    way.append(link.target)
    for place, (a, b) in enumerate(pairwise(way)):
        out = link.source_offset if place == 0 else 0.0
        into = link.target_offset if place == len(way) - 2 else 0.0
        num_bends = nodes[a].is_bend + nodes[b].is_bend
        weight = (_DIRECT, 1.0, _STRAIGHT)[num_bends]
        nodes[a].down.append((b, out, into, weight))
        nodes[b].up.append((a, into, out, weight))
    return way


def _order(nodes: list[_Node], rows: list[list[int]]) -> None:
    """Order each rank by the mean place of neighbours in the rank before, sweeping down and up."""
    place = {number: float(i) for row in rows for i, number in enumerate(row)}
    if max(map(len, rows), default=0) < 2:
        return
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            mean: dict[int, float] = {}
            for number in row:
                near = nodes[number].up if down else nodes[number].down
                mean[number] = sum(place[other] for other, *_ in near) / len(near) if near else place[number]
            row.sort(key=lambda number: (mean[number], nodes[number].is_bend, place[number]))
            for i, number in enumerate(row):
                place[number] = float(i)


def _set_x(nodes: list[_Node], rows: list[list[int]]) -> None:
    for row in rows:
        x = 0.0
        for i, number in enumerate(row):
            x += _distance(nodes[row[i - 1]], nodes[number]) if i else 0.0
            nodes[number].x = x
        for number in row:
            nodes[number].x -= x / 2
    for sweep in range(_PULLS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted: list[float] = []
            weights: list[float] = []
            for number in row:
                node = nodes[number]
                near = node.up if down else node.down
                both = near if sweep < _SWEEPS else [*node.up, *node.down]
                total = sum(weight for *_, weight in both)
                mean = sum((nodes[o].x + there - here) * weight for o, here, there, weight in both)
                wanted.append(mean / total if total else node.x)
                weights.append(total or 0.1)
            _settle(nodes, row, wanted, weights)


def _distance(a: _Node, b: _Node) -> float:
    return a.width / 2 + b.width / 2 + (BEND_GAP if a.is_bend or b.is_bend else GAP)


def _settle(nodes: list[_Node], row: list[int], wanted: list[float], weights: list[float]) -> None:
    """Least squares of wanted places that keeps order and distances: pools of blocks that touch (isotonic)."""
    offset = 0.0
    offsets: list[float] = []
    pools: list[tuple[float, float, int]] = []  # mean, weight, number of blocks
    for i, number in enumerate(row):
        offset += _distance(nodes[row[i - 1]], nodes[number]) if i else 0.0
        offsets.append(offset)
        mean, weight, count = wanted[i] - offset, weights[i], 1
        while pools and pools[-1][0] > mean:
            before, w, c = pools.pop()
            mean = (mean * weight + before * w) / (weight + w)
            weight, count = weight + w, count + c
        pools.append((mean, weight, count))
    places = [mean for mean, _, count in pools for _ in range(count)]
    for i, number in enumerate(row):
        nodes[number].x = places[i] + offsets[i]


def _line(
    link: Link,
    way: Sequence[int],
    nodes: Sequence[_Node],
    corners: Sequence[Point],
    sizes: Sequence[tuple[float, float]],
    bands: Sequence[tuple[float, float]],
) -> tuple[Point, ...]:
    if not way:
        return ()
    points: list[Point] = []
    for place, number in enumerate(way):
        node, (top, bottom) = nodes[number], bands[nodes[number].rank]
        if place == 0:
            x = node.x + link.source_offset
            points += [(x, corners[number][1] + sizes[number][1]), (x, bottom)]
        elif place == len(way) - 1:
            x = node.x + link.target_offset
            points += [(x, top), (x, corners[number][1])]
        else:
            points += [(node.x, top), (node.x, bottom)]
    return tuple(points)
