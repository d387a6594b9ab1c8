"""Bans: what must not be chosen together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ban:
    """What must not be chosen together: of each of some lists of removals, one.

    Attributes:
        alternatives: the lists, numbers of removals ascending; a removal may stand in several.
    """

    alternatives: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, removals: Iterable[int]) -> Ban:
        """The ban of one set and those that hold it."""
        return cls(tuple((i,) for i in sorted(set(removals))))

    def forbids(self, chosen: Iterable[int]) -> bool:
        """Whether a set has one of each list."""
        some = set(chosen)
        return all(not some.isdisjoint(each) for each in self.alternatives)
