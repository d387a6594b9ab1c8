"""Strategy ``resampled``: measures sets that are best for resampled impacts, and takes the best."""

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
_WORK = 4000  # programmes times removals: a large programme takes seconds

#: Sets measured first: those that use the caps, and those that leave more unused.
FIRST = (8, 3)

#: Further rounds, and sets in each.
ROUNDS = 3
NEXT = (4, 2)

#: Most rounds if the search budget allows more, neighbours of the best sets in each, and rounds without a better set
#: before the search ends.
DEEP = 6
BESIDE = 6
PATIENCE = 2

_DEEP_WORK = 800
_FEW = 100

_VARIATION = 0.5  # standard deviation of the log impacts: about the error of their sums


def resampled(search: Search) -> tuple[int, ...] | None:
    """Choose sets for the impacts and for resampled impacts, measure these sets, and take the best.

    Impacts add up only roughly, and sets with almost equal sums differ when measured. The first sets are the choices
    for resampled calibration data and for randomly varied impacts. Measurements correct the impacts
    (``strategies/impact_calibration``), and the next sets are the choices for these: one round, or three if
    measurements deviate from the sums. If greedy would take far longer, rounds go on, with neighbours of the best sets,
    until two rounds find no better set or the search budget is spent (``strategies/search_budget``). The best sets race
    on more data. Sets that leave more of the caps unused take part, but must halve the divergence. It needs
    ``harm``, else the result is the exact choice.
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
        f"{len(looked.sets)} sets of about the least sum of impacts were measured; the one of least impact is taken"
    )
    if handicaps[best] > 1:
        search.notes.append(stays_below(search))
    return last[best]


class _Looked:
    """Sets measured on the first part of the data, and the impacts corrected by them."""

    def __init__(self, search: Search, sets: Sequence[tuple[int, ...]]) -> None:
        self.search = search
        self.share = 0.0 if search.problem.effort is None else search.problem.effort.share
        self.sets: list[tuple[int, ...]] = []
        self.harms = np.empty(0)
        self.idle = 0  # rounds since the last improvement
        self.add(sets)

    def add(self, sets: Sequence[tuple[int, ...]]) -> None:
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
        """Calls of the model so far, in batches."""
        return self.calls_of(len(self.sets))

    @property
    def calls_of_race(self) -> float:
        """Fewest calls that find the best of the sets, in batches."""
        effort = self.search.problem.effort
        return 0.0 if effort is None else Race(final=min(FINAL, effort.num_batches)).calls(effort.share)

    def calls_of(self, num: int) -> float:
        """Calls for ``num`` more sets and once for the original, in batches."""
        return self.share * (num + 1)


def _most_rounds(search: Search) -> int:
    """Most rounds; fewer for large problems, whose programmes and proofs take seconds each."""
    num = len(search.problem.removals)
    return max(min(ROUNDS, _WORK // num), min(DEEP, _DEEP_WORK // num))


def _beside(search: Search, looked: _Looked, known: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """New valid sets that differ little from the two best, chosen by corrected impacts."""
    if len(search.problem.removals) > _FEW:
        return []
    swaps = LocalSearch(looked.held.costs, search.limits, search.bans)
    seen, found = [*looked.sets, *known], list[tuple[int, ...]]()
    for place in np.argsort(looked.expected, kind="stable")[:2]:
        found += _valid(search, swaps.neighbours(looked.sets[place]), BESIDE // 2, [*seen, *found])
    return found


def _first(search: Search, chosen: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The exact choice, and valid choices for other impacts."""
    found = _valid(search, chain([chosen], choices(search), _varied(search)), FIRST[0])
    with roomier(search) as floor:
        less = None if floor is None else least(search)
        if less is not None:
            found += _valid(search, chain([less], _varied(search)), FIRST[1], found)
    return found


def _next(search: Search, held: CalibratedImpacts, known: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    found = _valid(search, _in_order(search, held.costs, known, NEXT[0]), NEXT[0])
    with roomier(search) as floor:
        if floor is not None:
            known = [*known, *found]
            found += _valid(search, _in_order(search, held.costs, known, NEXT[1]), NEXT[1])
    return found


def _valid(
    search: Search, some: Iterable[tuple[int, ...]], most: int, known: Sequence[tuple[int, ...]] = ()
) -> list[tuple[int, ...]]:
    """The first ``most`` sets that are valid and not known."""
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
    """Factors of divergence, ``(set,)``: above 1 for sets that leave more than the slack unused."""
    floor = search.floor
    return np.array([1.0 if floor is None or floor.of(some) >= floor.low else 1 / WORTH for some in sets])


def runners_up(search: Search, first: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Next-best sets after the exact choice by sum of impacts, unproven."""
    return _in_order(search, search.problem.impacts, [first], _RUNNERS_UP)


def _in_order(search: Search, costs: np.ndarray, known: Sequence[tuple[int, ...]], num: int) -> list[tuple[int, ...]]:
    """Next-best sets by cost after the known ones, unproven."""
    found: list[tuple[int, ...]] = []
    for _ in range(num):
        bans = [*search.bans, *map(Exclusion.of, [*known, *found])]
        chosen = tuple(sorted(search.programme.least(costs, search.limits, bans)))
        if not chosen:
            break
        found.append(chosen)
    return found


def choices(search: Search) -> list[tuple[int, ...]]:
    """The exact choice for each draw of the calibration data, unproven."""
    drawn = search.drawn(max(_FEWEST, min(_DRAWS, _WORK // max(len(search.problem.removals), 1))))
    return search.once("choices", lambda: [_least(search, impacts) for impacts in drawn])


def _varied(search: Search) -> Iterator[tuple[int, ...]]:
    """The exact choice for randomly varied impacts, unproven."""
    rng, impacts = np.random.default_rng(search.problem.seed), search.problem.impacts
    factors = np.exp(_VARIATION * rng.standard_normal((sum(FIRST), len(impacts))))
    return (_least(search, impacts * some) for some in factors)


def _least(search: Search, impacts: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(search.programme.least(with_unknown(impacts), search.limits, search.bans)))


def recurrence(search: Search, chosen: Sequence[int]) -> tuple[float, ...]:
    """How often each chosen removal is chosen for resampled impacts, from 0 to 1; empty without draws."""
    again = choices(search)
    return tuple(sum(i in some for some in again) / len(again) for i in chosen) if again else ()
