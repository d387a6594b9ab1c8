"""Corrects the sizes of sets whose removals save more or less together than alone.

A transform that a projection is folded into gets the input channels of the projection's source. A transform that reads
a concat loses the channels of a dropped operand. If a second removal replaces that source, or the transform, the width
is another, and the size of the set is not the sum of its parts. Each small set of such removals is lowered once; the
difference becomes pieces of its own, so that sums are exact again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import TypeAlias

from layerprune.cost import Savings
from layerprune.graph import LayerGraph
from layerprune.proof import Removal
from layerprune.select.conflicts import conflicts
from layerprune.select.constraints import Pieces, amount

_LARGEST = 5  # removals in one such set
_MOST = 300  # sets, each of which is lowered
_FEW = 50  # removals up to which slices count: with a DenseNet's 62 each solution would take ten times as long

#: A set of removals, ascending → the size that it takes; None where it does not hold together.
Sizes: TypeAlias = Callable[[tuple[int, ...]], "float | None"]
Takings: TypeAlias = Callable[[tuple[int, ...]], "Savings | None"]


def interactions(graph: LayerGraph, removals: Sequence[Removal], taken_by: Takings) -> list[tuple[int, ...]]:
    """Find sets of two or more removals where each replaces a tensor that another's projection or slice reads.

    Returns:
        Sets that go together, each ascending, small sets first; at most as many as lower within seconds.
    """
    alone = [taken_by((i,)) for i in range(len(removals))]
    few = len(removals) <= _FEW
    near = _neighbours(graph, removals, slices=few)
    level = [(i,) for i, each in enumerate(alone) if near[i] and each and _changed(each, slices=few)]
    if not level:
        return []
    apart = set(conflicts(graph, removals))
    killing: dict[int, list[int]] = {}
    for i, each in enumerate(alone):
        for param in () if each is None else each.whole:
            killing.setdefault(param, []).append(i)

    def joining(some: tuple[int, ...]) -> list[int]:
        """Removals that may join a set: neighbours, and for larger sets removals that take a changed reader away."""
        taken = taken_by(some) if len(some) > 1 else None
        readers = () if taken is None else _changed(taken, slices=few)
        return [*(j for i in some for j in near[i]), *(j for param in readers for j in killing.get(param, ()))]

    found: list[tuple[int, ...]] = []
    for _ in range(_LARGEST - 1):
        larger = dict.fromkeys(tuple(sorted((*some, j))) for some in level for j in joining(some) if j not in some)
        some_of = [some for some in larger if apart.isdisjoint(combinations(some, 2))][: _MOST - len(found)]
        level = [some for some in some_of if taken_by(some) is not None]
        found += level
        if len(some_of) == _MOST or not level:
            break
    return found


def _changed(taken: Savings, *, slices: bool) -> tuple[int, ...]:
    """The remaining parameters with other channels: those of a projection, or, with ``slices``, fewer."""
    return (*taken.growth, *taken.parts) if slices else tuple(taken.growth)


def with_interactions(pieces: Pieces, sets: Sequence[tuple[int, ...]], size_of: Sizes) -> dict[tuple[int, ...], float]:
    """Correct pieces, so that their sums are right for some sets.

    The difference between a set's size and the sum of its parts counts where all its members go. A piece goes with any
    of its takers, so inclusion and exclusion express the difference. Small sets come first in ``sets``.
    """
    found = dict(pieces)
    failed: list[tuple[int, ...]] = []
    for some in sets:
        if any(set(bad) <= set(some) for bad in failed):
            continue
        size = size_of(some)
        if size is None:
            failed.append(some)
            continue
        more = size - amount(found, some)
        for num in range(1, len(some) + 1):
            for part in combinations(some, num):
                found[part] = found.get(part, 0.0) + (more if num % 2 else -more)
    return {takers: size for takers, size in found.items() if size}


def _neighbours(graph: LayerGraph, removals: Sequence[Removal], *, slices: bool) -> list[list[int]]:
    """For each removal, those that replace a tensor that one of its substitutes is made of, and vice versa."""
    replacing: dict[int, list[int]] = {}
    for i, removal in enumerate(removals):
        merged = [graph.layers[merge].outputs[0] for merge, _ in removal.cut.dropped] if slices else []
        for value in dict.fromkeys([*removal.cut.substitutes, *merged]):
            replacing.setdefault(value, []).append(i)
    found: list[dict[int, None]] = [{} for _ in removals]
    for i, removal in enumerate(removals):
        for source in removal.cut.substitutes.values():
            for value in _made_of(graph, source):
                for j in replacing.get(value, ()):
                    if j != i:
                        found[i][j] = found[j][i] = None
    return [sorted(some) for some in found]


def _made_of(graph: LayerGraph, value: int) -> Iterator[int]:
    """A value, and the values it is made of by layers of one operand that are no transforms."""
    yield value
    while (source := graph.values[value].layer) >= 0 and graph.layers[source].kind != "transform":
        data = [read for read in graph.layers[source].operands if read]
        if len(data) != 1 or len(data[0]) != 1:
            return
        value = data[0][0]
        yield value
