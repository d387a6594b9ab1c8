"""Layered layout of blocks and the edges between them, from top to bottom (after Sugiyama et al. 1981).

Blocks get ranks by their longest way from a source; an edge over several ranks gets a bend in each rank between; ranks
are ordered by the mean place of their neighbours, and coordinates keep straight edges where they can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

from scipy.optimize import linprog
from scipy.sparse import csr_array

GAP = 14  # between blocks of a rank
BEND_GAP = 12  # around the bend of an edge
RANK_GAP = 24  # between ranks
END_GAP = 14  # before the last rank, where that is an exit
_SWEEPS = 4
_STRAIGHT = 6.0  # weight of edges between bends
_DIRECT = 4.0  # weight of edges from rank to rank
_NARROW = 0.05  # weight of the whole width
_FAR = 1e6
_MOST_BENDS = 8  # per block; more long edges are drawn along one rail

#: A point of an edge.
Point: TypeAlias = tuple[float, float]
_Term: TypeAlias = tuple[dict[int, float], float, float]  # |sum of factor * x + constant| * weight


@dataclass(frozen=True)
class Link:
    """An edge between two blocks, with the offsets of its ends from the centres of the blocks."""

    source: int
    target: int
    source_offset: float = 0.0
    target_offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
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


@dataclass(kw_only=True)
class _Node:
    """A block or a bend.

    ``up`` and ``down`` are its neighbours: number, offset of the edge here, and there, from the centres, and whether
    the edge leads past blocks that its source leads to as well.
    """

    width: float
    rank: int
    x: float = 0.0  # of the centre
    is_bend: bool = False
    up: list[tuple[int, float, float, bool]] = field(default_factory=list[tuple[int, float, float, bool]])
    down: list[tuple[int, float, float, bool]] = field(default_factory=list[tuple[int, float, float, bool]])


def layered(
    sizes: Sequence[tuple[float, float]], links: Sequence[Link], *, first: Iterable[int] = (), last: int | None = None
) -> Layout:
    """Lay blocks out.

    Args:
        sizes: width and height of each block.
        links: edges; those to a block of the same or a lower number lead back up, along the rail.
        first: blocks of the first rank, with nothing else in it; they come in at the top.
        last: the block of the last rank, with nothing else in it.
    """
    first = frozenset(first)
    is_back = [link.source >= link.target for link in links]
    ranks = _ranks(len(sizes), [link for link, back in zip(links, is_back, strict=True) if not back], first)
    if last is not None:
        ranks[last] = max(rank for i, rank in enumerate(ranks) if i != last) + 1
    spans = [ranks[link.target] - ranks[link.source] for link in links]
    is_dense = sum(max(span - 1, 0) for span in spans) > _MOST_BENDS * len(sizes) + 8
    on_rail = [back or (is_dense and span > 1) for span, back in zip(spans, is_back, strict=True)]
    num_out = Counter(link.source for link, skip in zip(links, on_rail, strict=True) if not skip)
    nodes = [_Node(width=width, rank=rank) for (width, _), rank in zip(sizes, ranks, strict=True)]
    ways = [
        [] if skip else _way(nodes, link, num_out[link.source] > 1) for link, skip in zip(links, on_rail, strict=True)
    ]
    rows: list[list[int]] = [[] for _ in range(max(ranks, default=0) + 1)]
    for number, node in enumerate(nodes):
        rows[node.rank].append(number)
    _order(nodes, rows, is_fixed=bool(first))
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
        (nodes[i].x - width / 2, bands[ranks[i]][0] + (heights[ranks[i]] - height) * (0.5 if nodes[i].up else 1.0))
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


def _way(nodes: list[_Node], link: Link, is_fork: bool) -> list[int]:
    """Add the bends of a link, and return its nodes from source to target."""
    is_past = is_fork and nodes[link.target].rank - nodes[link.source].rank > 1
    way = [link.source]
    for rank in range(nodes[link.source].rank + 1, nodes[link.target].rank):
        nodes.append(_Node(width=0.0, rank=rank, is_bend=True))
        way.append(len(nodes) - 1)
    way.append(link.target)
    for place, (a, b) in enumerate(pairwise(way)):
        out = link.source_offset if place == 0 else 0.0
        into = link.target_offset if place == len(way) - 2 else 0.0
        nodes[a].down.append((b, out, into, is_past))
        nodes[b].up.append((a, into, out, is_past))
    return way


def _order(nodes: list[_Node], rows: list[list[int]], *, is_fixed: bool) -> None:
    """Order each rank by the mean place of neighbours in the rank before, sweeping down and up.

    ``is_fixed`` keeps the order of the first rank.
    """
    place = {number: float(i) for row in rows for i, number in enumerate(row)}
    if max(map(len, rows), default=0) < 2:
        return
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for row in rows[is_fixed:] if down else reversed(rows[is_fixed:]):
            mean: dict[int, float] = {}
            for number in row:
                near = nodes[number].up if down else nodes[number].down
                mean[number] = sum(place[other] for other, *_ in near) / len(near) if near else place[number]
            row.sort(key=lambda number: (mean[number], nodes[number].is_bend, place[number]))
            for i, number in enumerate(row):
                place[number] = float(i)


def _set_x(nodes: list[_Node], rows: list[list[int]]) -> None:
    """Set the x of all centres by a linear programme: least sum of how far edges lead aside, at least distances kept.

    As in dot (Gansner et al. 1993, section 4), except that a block from which several edges lead stands at the mean of
    the blocks that they lead to.
    """
    if max(map(len, rows)) == 1:
        for (row,) in rows:
            x = [nodes[other].x + there - here for other, here, there, _ in nodes[row].up]
            nodes[row].x = sum(x) / len(x) if x else 0.0
        return
    terms: list[_Term] = []
    for number, node in enumerate(nodes):
        for near, is_up in ((node.up, True), (node.down, False)):
            own = [each for each in near if not each[3]] or near
            if not own:
                continue
            factors = {number: 1.0}
            for other, *_ in own:
                factors[other] = factors.get(other, 0.0) - 1 / len(own)
            constant = sum(here - there for _, here, there, _ in own) / len(own)
            terms.append((factors, constant, _weight(nodes, node, own, is_up)))
    distances = [(a, b, _distance(nodes[a], nodes[b])) for row in rows for a, b in pairwise(row)]
    for node, x in zip(nodes, _least(len(nodes), terms, distances), strict=True):
        node.x = x


def _weight(nodes: Sequence[_Node], node: _Node, own: Sequence[tuple[int, float, float, bool]], is_up: bool) -> float:
    """How much a node should stand in line with its neighbours on one side."""
    if len(own) > 1:
        return _DIRECT / 2
    other = nodes[own[0][0]]
    if not own[0][3] and sum(not each[3] for each in (other.down if is_up else other.up)) > 1:
        return _DIRECT / 8  # the neighbour stands at the mean of several
    return (_DIRECT, _DIRECT / 4, _STRAIGHT)[node.is_bend + other.is_bend]


def _least(num: int, terms: Sequence[_Term], distances: Sequence[tuple[int, int, float]]) -> list[float]:
    """Places of least ``terms`` that keep the ``distances`` of neighbours in a rank."""
    if not terms and not distances:
        return [0.0] * num
    costs = [0.0] * num + [weight for *_, weight in terms] + [_NARROW, -_NARROW]
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    bounds: list[float] = []

    def at_most(factors: Iterable[tuple[int, float]], bound: float) -> None:
        for column, value in factors:
            rows.append(len(bounds))
            columns.append(column)
            values.append(value)
        bounds.append(bound)

    for place, (factors, constant, _) in enumerate(terms):
        at_most([*factors.items(), (num + place, -1.0)], -constant)
        at_most([*((column, -value) for column, value in factors.items()), (num + place, -1.0)], constant)
    right, left = num + len(terms), num + len(terms) + 1
    for a, b, distance in distances:
        at_most([(a, 1.0), (b, -1.0)], -distance)
        at_most([(b, 1.0), (right, -1.0)], 0.0)
        at_most([(left, 1.0), (a, -1.0)], 0.0)
    matrix = csr_array((values, (rows, columns)), shape=(len(bounds), len(costs)))
    free: list[tuple[float | None, float | None]] = [(None, None)] * num
    limits = [*free, *[(0.0, None)] * len(terms), (-_FAR, _FAR), (-_FAR, _FAR)]
    found = linprog(costs, A_ub=matrix, b_ub=bounds, bounds=limits, method="highs")
    return [float(x) for x in found.x[:num]]


def _distance(a: _Node, b: _Node) -> float:
    return a.width / 2 + b.width / 2 + (BEND_GAP if a.is_bend or b.is_bend else GAP)


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
