"""Strategy ``resampled``: sets chosen by impacts drawn anew, measured, and the best set taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from layerprune.impact import FINAL, counted
from layerprune.select.constraints import Exclusion
from layerprune.select.local_search import LocalSearch
from layerprune.select.problem import with_unknown
from layerprune.select.search import Search
from layerprune.select.strategies.exact import WORTH, exact, least, roomier, stays_below
from layerprune.select.strategies.impact_calibration import CalibratedImpacts, calibrate_impacts
from layerprune.select.strategies.search_budget import Race, race, search_budget

_DRAWS = 20
_FEWEST = 5
_RUNNERS_UP = 8
_WORK = 4000  # programmes times removals: large programmes take seconds each

#: Sets that are made at first: of those that use the caps, and of those that use them less.
FIRST = (8, 3)

#: Rounds of sets that are made after that, and how many there are in each.
ROUNDS = 3
NEXT = (4, 2)

#: Rounds there may be where a tenth of what greedy takes leaves room, sets beside the best in each of these, and after
#: how many without anything better the search ends.
DEEP = 6
BESIDE = 6
PATIENCE = 2

_DEEP_WORK = 800
_FEW = 100

_VARIATION = 0.5  # of the impacts' logarithm: sums of impacts are about as wrong


def resampled(search: Search) -> tuple[int, ...] | None:
    """Choose exactly for the impacts, and for others that come into question; make these sets, and take the best.

    Impacts add up only roughly, and sets whose sums hardly differ do differ when they are made. So sets are made that
    come out where the calibration data are drawn anew, or the impacts varied by chance. Impacts are corrected by what
    these do (``strategies/impact_calibration``), and the sets that come out then are made; where sets do something
    else than their sums say, that is done three times over. Where removing one after the other would take far more,
    that goes on, also with sets beside the best, until two rounds find nothing better or a tenth of that is used up
    (``select/strategies/search_budget``). The best of all are measured on more data. Among them are sets that use the
    caps less; they have to harm half as much.

    Args:
        search: the problem; with ``harm``, and with ``resampled`` for the draws; else this is the exact choice.

    Returns:
        A proven set within the budgets; None where there is none.
    """
    if search.problem.harm is None:
        return exact(search)
    first = least(search)
    if first is None:
        return None
    found = _first(search, first)
    if len(found) == 1:
        return first
    looked = _Looked(search, found)
    left = search_budget(search) - looked.calls if search.problem.effort is not None else -1.0
    for number in range(_most_rounds(search)):
        is_usual = number == 0 or (number < ROUNDS and looked.held.is_needed)
        is_deep = looked.idle < PATIENCE and left >= looked.calls_of(sum(NEXT) + BESIDE) + looked.calls_of_race
        new = _next(search, looked.held, looked.sets) if is_usual or is_deep else []
        if is_deep:
            new += _beside(search, looked, new)
        if not new:
            break
        left -= looked.calls_of(len(new))
        looked.add(new)
    meeting = race(search, left)
    last = [looked.sets[place] for place in np.argsort(looked.expected, kind="stable")[: meeting.num]]
    handicaps = _handicaps(search, last)
    best = search.best(last, handicaps, meeting.first, meeting.final)
    search.notes.append(
        f"{len(looked.sets)} sets of about the least sum of impacts were made; the one that harms least is taken"
    )
    if handicaps[best] > 1:
        search.notes.append(stays_below(search))
    return last[best]


class _Looked:
    """Sets that were made on the first of the data, and what they say."""

    def __init__(self, search: Search, sets: Sequence[tuple[int, ...]]) -> None:
        self.search = search
        self.share = 0.0 if search.problem.effort is None else search.problem.effort.share
        self.sets: list[tuple[int, ...]] = []
        self.harms = np.empty(0)
        self.idle = 0  # rounds since one has found something better
        self.add(sets)

    def add(self, sets: Sequence[tuple[int, ...]]) -> None:
        """Make more sets, and correct the impacts by all of them."""
        before = self.expected.min() if self.sets else np.inf
        self.sets += sets
        self.harms = np.concatenate([self.harms, self.search.first_look(sets)])
        problem = self.search.problem
        self.held = calibrate_impacts(problem.impacts, self.sets, self.harms, problem.noise)
        self.expected = np.nan_to_num(
            counted(self.held.of(self.sets, self.harms), _handicaps(self.search, self.sets)), nan=np.inf
        )
        self.idle = 0 if self.expected[-len(sets) :].min() < before else self.idle + 1

    @property
    def calls(self) -> float:
        """How often the model was called for them, in batches."""
        return self.calls_of(len(self.sets))

    @property
    def calls_of_race(self) -> float:
        """How often it is called at the least to find the best of them."""
        effort = self.search.problem.effort
        return 0.0 if effort is None else Race(final=min(FINAL, effort.num_batches)).calls(effort.share)

    def calls_of(self, num: int) -> float:
        """How often it is called for more sets, the original once."""
        return self.share * (num + 1)


def _most_rounds(search: Search) -> int:
    """How many rounds there may be: large programmes, and proofs of large models, take seconds each."""
    num = len(search.problem.removals)
    return max(min(ROUNDS, _WORK // num), min(DEEP, _DEEP_WORK // num))


def _beside(search: Search, looked: _Looked, known: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Valid sets that corrected impacts choose among those that differ little from the two best, none of them known."""
    if len(search.problem.removals) > _FEW:
        return []
    swaps = LocalSearch(looked.held.costs, search.limits, search.bans)
    seen, found = [*looked.sets, *known], list[tuple[int, ...]]()
    for place in np.argsort(looked.expected, kind="stable")[:2]:
        found += _valid(search, swaps.neighbours(looked.sets[place]), BESIDE // 2, [*seen, *found])
    return found


def _first(search: Search, chosen: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The exact choice, and valid sets that others would choose."""
    found = _valid(search, chain([chosen], choices(search), _varied(search)), FIRST[0])
    with roomier(search) as floor:
        less = None if floor is None else least(search)
        if less is not None:
            found += _valid(search, chain([less], _varied(search)), FIRST[1], found)
    return found


def _next(search: Search, held: CalibratedImpacts, known: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Valid sets that corrected impacts choose, none of them known."""
    found = _valid(search, _in_order(search, held.costs, known, NEXT[0]), NEXT[0])
    with roomier(search) as floor:
        if floor is not None:
            known = [*known, *found]
            found += _valid(search, _in_order(search, held.costs, known, NEXT[1]), NEXT[1])
    return found


def _valid(
    search: Search, some: Iterable[tuple[int, ...]], most: int, known: Sequence[tuple[int, ...]] = ()
) -> list[tuple[int, ...]]:
    """The first of some sets that are valid and not known."""
    found: list[tuple[int, ...]] = []
    seen = set(known)
    for one in some:
        if one and one not in seen and search.is_valid(one):
            found.append(one)
        seen.add(one)
        if len(found) == most:
            break
    return found


def _handicaps(search: Search, sets: Sequence[Sequence[int]]) -> np.ndarray:
    """What the harm of sets counts: those that use the caps less than they should have to do half of it."""
    floor = search.floor
    return np.array([1.0 if floor is None or floor.of(some) >= floor.low else 1 / WORTH for some in sets])


def runners_up(search: Search, first: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The sets that come after the exact choice by the sum of impacts, none of them proven."""
    return _in_order(search, search.problem.impacts, [first], _RUNNERS_UP)


def _in_order(search: Search, costs: np.ndarray, known: Sequence[tuple[int, ...]], num: int) -> list[tuple[int, ...]]:
    """The sets of least cost after those that are known, none of them proven."""
    found: list[tuple[int, ...]] = []
    for _ in range(num):
        bans = [*search.bans, *map(Exclusion.of, [*known, *found])]
        chosen = tuple(sorted(search.programme.least(costs, search.limits, bans)))
        if not chosen:
            break
        found.append(chosen)
    return found


def choices(search: Search) -> list[tuple[int, ...]]:
    """What the exact programme chooses for each draw of the calibration data, none of it proven."""
    drawn = search.drawn(max(_FEWEST, min(_DRAWS, _WORK // max(len(search.problem.removals), 1))))
    return search.once("choices", lambda: [_least(search, impacts) for impacts in drawn])


def _varied(search: Search) -> Iterator[tuple[int, ...]]:
    """What the exact programme chooses where impacts are others by chance, none of it proven."""
    rng, impacts = np.random.default_rng(search.problem.seed), search.problem.impacts
    factors = np.exp(_VARIATION * rng.standard_normal((sum(FIRST), len(impacts))))
    return (_least(search, impacts * some) for some in factors)


def _least(search: Search, impacts: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(search.programme.least(with_unknown(impacts), search.limits, search.bans)))


def recurrence(search: Search, chosen: Sequence[int]) -> tuple[float, ...]:
    """How often the sum of impacts chooses each removal of a choice for the draws; empty where there are none."""
    again = choices(search)
    return tuple(sum(i in some for some in again) / len(again) for i in chosen) if again else ()
