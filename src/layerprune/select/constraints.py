"""A limit: how much of one thing a set of removals may take, and how much it has to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

#: Removals (ascending) → what goes with any one of them, and once only.
Pieces: TypeAlias = Mapping[tuple[int, ...], float]


@dataclass(frozen=True)
class Limit:
    """Bounds on what a set takes of something.

    Attributes:
        pieces: what there is to take.
        low: the least that a set has to take.
        high: the most that it may take.
    """

    pieces: Pieces
    low: float = 0.0
    high: float = math.inf

    def of(self, chosen: Collection[int]) -> float:
        """What a set takes."""
        return amount(self.pieces, chosen)

    def without_low(self) -> Limit:
        """The same cap, and nothing that has to go."""
        return replace(self, low=0.0)


def amount(pieces: Pieces, chosen: Collection[int]) -> float:
    """What a set takes of some pieces."""
    some = set(chosen)
    return float(sum(size for takers, size in pieces.items() if not some.isdisjoint(takers)))


def weighted(parts: Iterable[tuple[Pieces, float]]) -> dict[tuple[int, ...], float]:
    """Add pieces of several things, each times a weight."""
    found: dict[tuple[int, ...], float] = {}
    for pieces, weight in parts:
        for takers, size in pieces.items():
            found[takers] = found.get(takers, 0.0) + weight * size
    return found
