"""Families: removals of one kind of which too many fail together, whichever they are."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from layerprune.proof import Removal

_SAMPLES = 3
_NUMBER = re.compile(r"\d+")

#: Whether removals can be made together.
Holds: TypeAlias = Callable[[Sequence[int]], bool]


@dataclass(frozen=True)
class Family:
    """Removals that differ in numbers only, of which any so many fail, together with some others.

    Attributes:
        others: what has to go as well for the members to fail.
        members: the removals.
        num: how many of them are too many.
    """

    others: tuple[int, ...]
    members: tuple[int, ...]
    num: int

    def failing(self, member: int) -> tuple[int, ...]:
        """A set that fails and whose parts do not, with a given member."""
        company = [i for i in self.members if i != member][: self.num - 1]
        return tuple(sorted((*self.others, member, *company)))


def find_family(core: Sequence[int], removals: Sequence[Removal], holds: Holds) -> Family | None:
    """Find out whether a set fails because too many of a kind go, rather than these very ones.

    A deep model repeats itself: where two of its 13 attention layers must stay, whichever, there are 13 sets of 12 that
    fail, and each may have been all that was known of the others. So members of the set are exchanged for removals of
    their kind that are not in it. All that can be exchanged and still fail make the family, and then some sets drawn
    from it have to fail, and to hold when they are smaller by one: the rest is not tried.

    Args:
        core: a set that fails and whose parts do not.
        removals: all removals, by number.
        holds: whether some of them can be made together.

    Returns:
        The family; None where other sets of the kind hold.
    """
    commonest = Counter(kind(removals[i]) for i in core).most_common(1)[0][0]
    inside = [i for i in core if kind(removals[i]) == commonest]
    outside = _outside(commonest, core, removals)
    if len(inside) < 2 or not outside:
        return None
    moved = [i for i in inside if not holds([*_without(core, i), outside[0]])]
    if len(moved) < 2:
        return None

    def joins(new: int) -> bool:
        """Whether one fails in a member's place, and not with some of the others for a reason of its own."""
        rest = _without(core, moved[0])
        parts = (_without(rest, i) for i in (moved[1], moved[-1]))
        return not holds([*rest, new]) and all(holds([*part, new]) for part in parts)

    members = [*moved, *filter(joins, outside)]
    family = Family(tuple(i for i in core if i not in moved), tuple(sorted(members)), len(moved))
    return family if len(members) > len(moved) and _is_borne_out(family, holds) else None


def kind(removal: Removal) -> str:
    """A removal's name without its numbers."""
    return _NUMBER.sub("#", removal.name)


def _without(some: Sequence[int], one: int) -> list[int]:
    return [i for i in some if i != one]


def _outside(name: str, core: Sequence[int], removals: Sequence[Removal]) -> list[int]:
    """Removals of a kind that are not in a set, and kill no layer that it kills, or one of them before."""
    taken = {layer for i in core for layer in removals[i].dead}
    found: list[int] = []
    for i, removal in enumerate(removals):
        if kind(removal) == name and taken.isdisjoint(removal.dead):
            found.append(i)
            taken |= removal.dead
    return found


def _is_borne_out(family: Family, holds: Holds) -> bool:
    """Whether some sets of as many members as are too many fail, and some of one less hold."""
    draw = random.Random(0)
    for _ in range(_SAMPLES):
        some = draw.sample(family.members, family.num)
        if holds([*family.others, *some]) or not holds([*family.others, *some[1:]]):
            return False
    return True
