"""Finds sets of removals that the layer graph alone rules out."""

from __future__ import annotations

from collections.abc import Sequence

from layerprune.graph import LayerGraph
from layerprune.proof import Removal
from layerprune.select.constraints import Exclusion


def exclusions_of(graph: LayerGraph, removals: Sequence[Removal]) -> list[Exclusion]:
    """All sets that the layer graph rules out: conflicting pairs, and sets that would leave a concat no operand."""
    return [*map(Exclusion.of, conflicts(graph, removals)), *_emptied(graph, removals)]


def conflicts(graph: LayerGraph, removals: Sequence[Removal]) -> list[tuple[int, int]]:
    """Pairs of removals that exclude each other, or where one makes the other needless."""
    spans = [(min(r.dead), max(r.dead)) for r in removals]
    points = [_points(graph, r) for r in removals]
    found: list[tuple[int, int]] = []
    order = sorted(range(len(removals)), key=lambda i: spans[i][0])
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if spans[j][0] > spans[i][1] + 1 and not points[i] & points[j]:
                break
            if _excludes(graph, removals[i], removals[j]) or _excludes(graph, removals[j], removals[i]):
                found.append((min(i, j), max(i, j)))
    return sorted(found)


def _emptied(graph: LayerGraph, removals: Sequence[Removal]) -> list[Exclusion]:
    """Exclusions of sets that would drop every operand of a concat."""
    droppers: dict[int, dict[int, list[int]]] = {}
    for index, removal in enumerate(removals):
        for merge, value in removal.cut.dropped:
            droppers.setdefault(merge, {}).setdefault(value, []).append(index)
    found: dict[Exclusion, None] = {}
    for merge, by_value in droppers.items():
        if len(by_value) > 1 and {(value,) for value in by_value} >= set(graph.layers[merge].operands):
            found[Exclusion(tuple(map(tuple, by_value.values())))] = None
    return list(found)


def _points(graph: LayerGraph, removal: Removal) -> frozenset[int]:
    return frozenset(removal.cut.substitutes) | {graph.layers[m].outputs[0] for m, _ in removal.cut.dropped}


def _excludes(graph: LayerGraph, one: Removal, other: Removal) -> bool:
    """Whether ``one`` is impossible or needless after ``other``."""
    if one.dead <= other.dead or set(one.cut.substitutes) & set(other.cut.substitutes):
        return True
    sources = [graph.values[s].layer for s in one.cut.substitutes.values() if s not in other.cut.substitutes]
    if any(source in other.dead for source in sources):
        return True
    where = [graph.values[y].layer for y in one.cut.substitutes] + [m for m, _ in one.cut.dropped]
    if all(layer in other.dead for layer in where):
        return True
    for merge in {m for m, _ in one.cut.dropped}:
        left = {v for m, v in one.cut.dropped | other.cut.dropped if m == merge}
        if {(v,) for v in left} >= set(graph.layers[merge].operands):
            return True
    return False
