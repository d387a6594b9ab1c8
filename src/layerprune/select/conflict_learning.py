"""Learns which removals of a set fail together, and which other sets fail with them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from layerprune.graph import Refusal, numbers_in, without_numbers
from layerprune.proof import Removal
from layerprune.select.constraints import Exclusion

_SAMPLES = 3

#: Whether removals can be made together.
Holds: TypeAlias = Callable[[Sequence[int]], bool]


@dataclass(frozen=True)
class FailureFamily:
    """Removals that differ in numbers only: any ``num`` of the members fail together with the others."""

    others: tuple[int, ...]
    members: tuple[int, ...]
    num: int

    def failing(self, member: int) -> tuple[int, ...]:
        company = [i for i in self.members if i != member][: self.num - 1]
        return tuple(sorted((*self.others, member, *company)))


def find_failure_family(core: Sequence[int], removals: Sequence[Removal], holds: Holds) -> FailureFamily | None:
    """Find out whether a set fails because too many removals of a kind go, rather than because of these removals.

    A deep model repeats its blocks: if any two of its 13 attention layers must stay, 13 sets of 12 fail. So members of
    the set are exchanged for removals of their kind outside it. All removals that still fail in the exchange make the
    family. Some sets drawn from it then have to fail, and to hold with one removal less; the other sets are not tried.

    Returns:
        The family of the minimal failing set ``core``; None where other sets of the kind hold.
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
        """Whether a removal fails in a member's place, and does not already fail with a part of the others."""
        rest = _without(core, moved[0])
        parts = (_without(rest, i) for i in (moved[1], moved[-1]))
        return not holds([*rest, new]) and all(holds([*part, new]) for part in parts)

    members = [*moved, *filter(joins, outside)]
    family = FailureFamily(tuple(i for i in core if i not in moved), tuple(sorted(members)), len(moved))
    return family if len(members) > len(moved) and _is_borne_out(family, holds) else None


def kind(removal: Removal) -> tuple[str, ...]:
    """The kind of a removal and its subject without numbers: the same for removals of repeated blocks."""
    return removal.kind, *(without_numbers(str(part)) for part in removal.subject)


def _without(some: Sequence[int], one: int) -> list[int]:
    return [i for i in some if i != one]


def _outside(name: tuple[str, ...], core: Sequence[int], removals: Sequence[Removal]) -> list[int]:
    """Removals of a kind outside a set whose dead layers overlap neither with the set's nor with one another's."""
    taken = {layer for i in core for layer in removals[i].dead}
    found: list[int] = []
    for i, removal in enumerate(removals):
        if kind(removal) == name and taken.isdisjoint(removal.dead):
            found.append(i)
            taken |= removal.dead
    return found


def _is_borne_out(family: FailureFamily, holds: Holds) -> bool:
    """Whether sampled sets of ``num`` members fail, and hold with one member less."""
    draw = random.Random(0)
    for _ in range(_SAMPLES):
        some = draw.sample(family.members, family.num)
        if holds([*family.others, *some]) or not holds([*family.others, *some[1:]]):
            return False
    return True


_ALIKE = 4


class ConflictLearner:
    """Finds out which removals of a set do not hold together.

    A failure teaches more than one set, in three ways. A deep model repeats its blocks: a failure between blocks 3 and
    4 repeats between 7 and 8. So once :data:`_ALIKE` pairs have failed that differ in numbers only, all such pairs
    count as failing. Where three or more removals fail together, :func:`find_failure_family` tries others of their
    kind. And the dead layers count, not the removals that kill them: see :meth:`ban`. To forbid a set that would hold
    costs a choice; to prove each of a million sets costs days.

    ``check`` proves a set, or raises :class:`Refusal`; ``lower_removal`` is the part of it that runs no model.
    """

    def __init__(
        self,
        removals: Sequence[Removal],
        check: Callable[[Sequence[int]], object],
        lower_removal: Callable[[Sequence[int]], object],
    ) -> None:
        self.removals = removals
        self.check = check
        self.lower_removal = lower_removal
        self.known: dict[tuple[tuple[int, ...], bool], bool] = {}
        self.failed: dict[tuple[object, ...], int] = {}

    def among(self, chosen: Sequence[int]) -> list[Exclusion]:
        """Bans of minimal failing sets; the first of them forbid ``chosen``.

        The bans suffice that the rest of ``chosen`` holds, or at least lowers where ``chosen`` does not lower: to run a
        set that will hardly be chosen would cost more than it tells.
        """
        left = tuple(chosen)
        runs = self.holds(left, runs=False)
        cores: list[tuple[int, ...]] = []
        bans: list[Exclusion] = []
        while not cores or not self.holds(left, runs=runs):
            core = self.core(left)
            cores.append(core)
            bans.append(self.ban(core))
            left = tuple(i for i in left if i != core[-1])
            while bans[-1].forbids(left):  # of a family more than one too many may have been chosen
                concerned = {i for each in bans[-1].family or bans[-1].alternatives for i in each}
                left = tuple(i for i in left if i != max(concerned & set(left)))
            if len(core) == 2:
                pattern = self.pattern(core)
                self.failed[pattern] = self.failed.get(pattern, 0) + 1
        patterns = {self.pattern(core) for core in cores if len(core) == 2}
        # A ban of a weaker set may not cover the set itself, which is then forbidden as well.
        missed = [Exclusion.of(core) for core, ban in zip(cores, bans, strict=True) if not ban.forbids(core)]
        return [*bans, *missed, *(Exclusion.of(pair) for pair in self.alike(patterns))]

    def core(self, failing: tuple[int, ...]) -> tuple[int, ...]:
        """A minimal failing subset, by halving (QuickXplain, Junker 2004).

        The last removal of the shortest failing prefix is a member; the search repeats with that removal always in.
        """
        found: tuple[int, ...] = ()
        pool = failing
        runs = self.holds(failing, runs=False)  # where lowering fails already, no model needs to run
        while pool and (not found or self.holds(found, runs=runs)):
            low, high = 0, len(pool)  # found + pool[:low] holds, found + pool[:high] fails
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self.holds((*found, *pool[:middle]), runs=runs) else (low, middle)
            found, pool = (pool[high - 1], *found), pool[: high - 1]
        return tuple(sorted(found))

    def holds(self, some: Sequence[int], *, runs: bool = True) -> bool:
        """Whether removals can be made together; without ``runs`` only whether they lower. The empty set holds."""
        key = tuple(sorted(set(some))), runs
        if not some:
            return True
        if key not in self.known:
            try:
                (self.check if runs else self.lower_removal)(key[0])
                self.known[key] = True
            except Refusal:
                self.known[key] = False
        return self.known[key]

    # ---- pairs like those that failed -----------------------------------------------------------------------------

    def alike(self, patterns: set[tuple[object, ...]]) -> list[tuple[int, ...]]:
        often = {pattern for pattern in patterns if self.failed[pattern] >= _ALIKE}
        every = combinations(range(len(self.removals)), 2) if often else ()
        return [pair for pair in every if self.touch(pair) and self.pattern(pair) in often]

    def touch(self, pair: tuple[int, ...]) -> bool:
        one, other = (self.removals[i].dead for i in pair)
        return min(one) <= max(other) + 50 and min(other) <= max(one) + 50

    def pattern(self, pair: tuple[int, ...]) -> tuple[object, ...]:
        """Two removals' layers, with the numbers in the names of the second counted from those of the first."""
        one, other = (self.removals[i] for i in sorted(pair))
        first, second = (numbers_in(each.subject) for each in (one, other))
        steps = [b - first[min(i, len(first) - 1)] if first else b for i, b in enumerate(second)]
        within = [b - first[0] for b in first]
        return *map(kind, (one, other)), tuple(within), tuple(steps)

    # ---- other ways to lose the same layers -----------------------------------------------------------------------

    def ban(self, core: tuple[int, ...]) -> Exclusion:
        """Forbid a minimal failing set, with all sets that fail like it.

        Each member is first exchanged for the removal that kills least and still fails with the others. If the set
        belongs to a family, all sets of the family are forbidden, else this set alone; both with all sets that lose the
        same layers by other removals.
        """
        if len(core) < 3:
            return Exclusion.of(core)
        runs = self.holds(core, runs=False)
        weak = self.weakest(core, runs)
        for some in dict.fromkeys((weak, core)):
            family = find_failure_family(some, self.removals, lambda tried: self.holds(tried, runs=runs))
            if family is not None:
                return self.ban_of_family(family, runs)
        return self.ban_of_set(weak, runs)

    def ban_of_set(self, core: tuple[int, ...], runs: bool) -> Exclusion:
        """Forbid one set, with all sets that lose the same layers.

        Each layer of a failing set can go by several removals: its branch, its block. Twenty such layers would fail in
        a million sets, one by one. So a removal that kills at least as much as a member is its alternative, if it fails
        with the other members and holds when one of these stays. Only the mixture of all second choices is tried. If it
        fails in the same way, every mixture is banned. If it holds (layers that leave with their blocks are not
        missed), only mixtures with a member of the set itself are banned, given that the second choices fail with any
        member.
        """
        lists = [self.alternatives(member, core, runs) for member in core]
        second = [self.second(m, each) for m, each in zip(core, lists, strict=True)]
        alternatives = tuple(tuple(sorted(each)) for each in lists)
        if set(second) == set(core):
            return Exclusion.of(core)
        if not self.holds(second, runs=runs):
            return Exclusion(alternatives) if self.holds(second[1:], runs=runs) else Exclusion.of(core)
        own = tuple(member for member in core if member not in second)
        mixed = [[*second[:i], m, *second[i + 1 :]] for i, m in enumerate(core) if m in own]
        return (
            Exclusion.of(core)
            if any(self.holds(some, runs=runs) for some in mixed)
            else Exclusion((*alternatives, own))
        )

    def ban_of_family(self, family: FailureFamily, runs: bool) -> Exclusion:
        """Forbid all sets with too many of a family; also those of alternatives, if mixtures fail as well."""
        lists = {i: self.alternatives(i, family.failing(i), runs) for i in family.members}
        lists |= {i: self.alternatives(i, family.failing(family.members[0]), runs) for i in family.others}
        second = [self.second(i, lists[i]) for i in family.failing(family.members[0])]
        if self.holds(second, runs=runs) or not self.holds(second[1:], runs=runs):
            lists = {i: [i] for i in lists}
        others, members = ([tuple(sorted(lists[i])) for i in some] for some in (family.others, family.members))
        return Exclusion(tuple(others), tuple(members), family.num)

    def second(self, member: int, alternatives: Sequence[int]) -> int:
        """The smallest of a member's alternatives; the member itself where there is none."""
        return min((i for i in alternatives if i != member), key=self.size, default=member)

    def weakest(self, core: tuple[int, ...], runs: bool) -> tuple[int, ...]:
        """The set with each member exchanged for the removal that kills least and still fails with the others."""
        held = list(core)
        for place, member in enumerate(core):
            dead = self.removals[member].dead
            less = [i for i, removal in enumerate(self.removals) if removal.dead < dead and i not in held]
            others = [*held[:place], *held[place + 1 :]]
            for i in sorted(less, key=self.size):
                # It may already fail with a part of the others: two of these are left out in turn.
                parts = (others[1:], others[:-1])
                if not self.holds([*others, i], runs=runs) and all(self.holds([*p, i], runs=runs) for p in parts):
                    held[place] = i
                    break
        return tuple(sorted(held))

    def alternatives(self, member: int, core: tuple[int, ...], runs: bool) -> list[int]:
        """A member, and the removals that fail with all other members but not with all but one."""
        found = [member]
        for i, removal in enumerate(self.removals):
            if i in core or not self.removals[member].dead <= removal.dead:
                continue
            rest = [j for j in core if not self.removals[j].dead <= removal.dead]
            if not self.holds([*rest, i], runs=runs) and self.holds([*rest[1:], i], runs=runs):
                found.append(i)
        return found

    def size(self, number: int) -> tuple[int, int]:
        return len(self.removals[number].dead), number
