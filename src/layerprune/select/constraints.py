"""Linear constraints on sets of removals: bounds and exclusions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

#: Removals (ascending) → an amount that goes once, as soon as any of them is made.
Pieces: TypeAlias = Mapping[tuple[int, ...], float]


@dataclass(frozen=True)
class Limit:
    """The least and the most that a set may take of some pieces."""

    pieces: Pieces
    low: float = 0.0
    high: float = math.inf

    def of(self, chosen: Collection[int]) -> float:
        return amount(self.pieces, chosen)

    def without_low(self) -> Limit:
        return replace(self, low=0.0)


def amount(pieces: Pieces, chosen: Collection[int]) -> float:
    """The amount of some pieces that a set takes."""
    some = set(chosen)
    return float(sum(size for takers, size in pieces.items() if not some.isdisjoint(takers)))


def weighted(parts: Iterable[tuple[Pieces, float]]) -> dict[tuple[int, ...], float]:
    """The weighted sum of several pieces."""
    found: dict[tuple[int, ...], float] = {}
    for pieces, weight in parts:
        for takers, size in pieces.items():
            found[takers] = found.get(takers, 0.0) + weight * size
    return found


@dataclass(frozen=True)
class Exclusion:
    """Forbids sets with a removal from each list, and from too many lists of a family.

    Attributes:
        alternatives: the lists, numbers of removals ascending; a removal may be in several lists.
        family: more lists, of which only some may have a chosen removal where each of ``alternatives`` has one.
        num: how many of the family are too many; 0 without a family.
    """

    alternatives: tuple[tuple[int, ...], ...]
    family: tuple[tuple[int, ...], ...] = ()
    num: int = 0

    @classmethod
    def of(cls, removals: Iterable[int]) -> Exclusion:
        return cls(tuple((i,) for i in sorted(set(removals))))

    def forbids(self, chosen: Iterable[int]) -> bool:
        """Whether a set has a removal of each list, and of too many lists of the family."""
        some = set(chosen)
        has_all = all(not some.isdisjoint(each) for each in self.alternatives)
        return has_all and sum(not some.isdisjoint(each) for each in self.family) >= self.num

    @property
    def limit(self) -> Limit:
        """The same as a bound: a list outside the family weighs so much that the whole family fits without it."""
        weight = len(self.family) - self.num + 1
        pieces: dict[tuple[int, ...], float] = {}
        for lists, size in ((self.alternatives, weight), (self.family, 1)):
            for each in lists:
                pieces[each] = pieces.get(each, 0.0) + size
        return Limit(pieces, high=weight * len(self.alternatives) + self.num - 1.0)
