"""Bans: what must not be chosen together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from layerprune.select.constraints import Limit


@dataclass(frozen=True)
class Ban:
    """What must not be chosen together: of each of some lists of removals one, and of a family of lists too many.

    Attributes:
        alternatives: the lists, numbers of removals ascending; a removal may stand in several.
        family: more lists, of which only some may have a removal chosen where each of the others has.
        num: how many of the family are too many; 0 without a family.
    """

    alternatives: tuple[tuple[int, ...], ...]
    family: tuple[tuple[int, ...], ...] = ()
    num: int = 0

    @classmethod
    def of(cls, removals: Iterable[int]) -> Ban:
        """The ban of one set and those that hold it."""
        return cls(tuple((i,) for i in sorted(set(removals))))

    def forbids(self, chosen: Iterable[int]) -> bool:
        """Whether a set has one of each list, and of enough of the family."""
        some = set(chosen)
        has_all = all(not some.isdisjoint(each) for each in self.alternatives)
        return has_all and sum(not some.isdisjoint(each) for each in self.family) >= self.num

    @property
    def limit(self) -> Limit:
        """The same as a bound: a list outside the family weighs so much that without it the whole family fits."""
        weight = len(self.family) - self.num + 1
        pieces: dict[tuple[int, ...], float] = {}
        for lists, size in ((self.alternatives, weight), (self.family, 1)):
            for each in lists:
                pieces[each] = pieces.get(each, 0.0) + size
        return Limit(pieces, high=weight * len(self.alternatives) + self.num - 1.0)
