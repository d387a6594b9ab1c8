"""What removals take together beyond the sum of what each takes alone.

A transform that takes a projection in gets as many input channels as the projection's source has, and one that reads a
concat loses those of an operand that goes. Where a second removal replaces that source, or the transform, the width is
another one, or another transform's, and the size of the set is not the sum of its parts. Each small set that hangs
together so is realised once, and the difference becomes pieces of its own: then sums are exact again.
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
_MOST = 300  # sets, each of which is realised
_FEW = 50  # removals up to which slices count: of a DenseNet's 62 each solution would take ten times as long

#: A set of removals, ascending → what it takes; None where it does not hold together.
Sizes: TypeAlias = Callable[[tuple[int, ...]], "float | None"]
Takings: TypeAlias = Callable[[tuple[int, ...]], "Savings | None"]


def interactions(graph: LayerGraph, removals: Sequence[Removal], taken_by: Takings) -> list[tuple[int, ...]]:
    """Find the sets of two or more removals of which each replaces what another one's projection, or slice, reads.

    Args:
        graph: the layer graph.
        removals: what sets are made of, by number.
        taken_by: the parameters that a set takes.

    Returns:
        Sets that go together, each ascending, small ones first; no more than can be realised in some seconds.
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
        """What may join a set: also what takes a reader away that changes in it, where that is not one's own alone."""
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
    """The parameters that stay with other channels: those of a projection, or, with ``slices``, fewer."""
    return (*taken.growth, *taken.parts) if slices else tuple(taken.growth)


def with_interactions(pieces: Pieces, sets: Sequence[tuple[int, ...]], size_of: Sizes) -> dict[tuple[int, ...], float]:
    """Correct pieces, so that what they say of some sets is what these take.

    What a set takes beyond the sum of its parts goes where all its members go. In pieces, each of which goes with any
    one of its takers, that is written by inclusion and exclusion.

    Args:
        pieces: what removals take, each as if it was alone.
        sets: those to correct for, small ones first.
        size_of: what a set takes.
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
    """For each removal those that replace what one of its substitutes is made of, and the other way round."""
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
    """A value, and what it is made of by layers other than transforms, each of one tensor."""
    yield value
    while (source := graph.values[value].layer) >= 0 and graph.layers[source].kind != "transform":
        data = [read for read in graph.layers[source].operands if read]
        if len(data) != 1 or len(data[0]) != 1:
            return
        value = data[0][0]
        yield value
