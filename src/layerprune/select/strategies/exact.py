"""Strategy ``exact``: the set with the least sum of impacts, by integer programming."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from layerprune.select.constraints import Exclusion, Limit
from layerprune.select.search import Search

#: With calibration data, a set may leave this multiple of the slack unused if at most this share of the impact remains.
MORE_SLACK = 2.0
WORTH = 0.5

_REFINEMENTS = 6  # bisection steps


def exact(search: Search) -> tuple[int, ...] | None:
    """Choose the set with the least sum of impacts within the budgets.

    With caps, a first programme finds the most that fits, and a second one the least impact among sets within the
    problem's slack of it. With calibration data, the least impact within :data:`MORE_SLACK` times the slack is taken if
    it is at most :data:`WORTH` of the former. With targets, the least impact that reaches them is taken.
    """
    chosen = least(search)
    if chosen is None:
        return None
    costs = search.problem.impacts
    with roomier(search) as floor:
        less = None if floor is None else least(search)
    if floor is None or less is None or not 0 <= costs[list(less)].sum() <= WORTH * costs[list(chosen)].sum():
        return chosen
    search.floor = floor
    search.notes.append(stays_below(search))
    return less


def stays_below(search: Search) -> str:
    """Note on a set that leaves more than the slack unused."""
    most = MORE_SLACK * search.problem.slack
    return f"it stays below the budget, by up to {most:.0%} of what fits, as that at least halves the impact"


def least(search: Search) -> tuple[int, ...] | None:
    """The set with the least sum of impacts among those that use the caps up to the slack."""
    costs = search.problem.impacts
    most: tuple[int, ...] | None = None
    if search.is_filling and search.floor is None:
        most = search.fill()
        if most is None:
            return None

    def solve(limits: Sequence[Limit], bans: Sequence[Exclusion]) -> Sequence[int]:
        return search.programme.least(costs, limits, bans)

    chosen = search.first_valid(solve)
    if chosen is None:
        return most
    return chosen if search.is_filling else _refined(search, chosen, costs)


@contextmanager
def roomier(search: Search) -> Generator[Limit | None]:
    """Widen the slack to :data:`MORE_SLACK` slacks inside; None without a slack or without calibration data."""
    before, slack = search.floor, search.problem.slack
    if before is not None and search.problem.has_data and slack > 0:
        low = before.low * max(1 - MORE_SLACK * slack, 0.0) / (1 - slack)
        search.floor = replace(before, low=low)
    try:
        yield search.floor if search.floor is not before else None
    finally:
        search.floor = before


def _refined(search: Search, chosen: tuple[int, ...], costs: np.ndarray) -> tuple[int, ...]:
    """Improve a set that exceeds the targets, by bisection of the amount that is removed."""
    best, known = chosen, {chosen: True}
    low, high = 0.0, 1.0
    part = search.surplus(chosen)
    for _ in range(_REFINEMENTS if part < 1 else 0):
        found = tuple(sorted(search.programme.least(costs, search.eased(part), search.bans)))
        if found not in known:
            known[found] = bool(found) and search.is_valid(found)
        if known[found]:
            high = part
            best = found if costs[list(found)].sum() < costs[list(best)].sum() else best
        else:
            low = part
        part = (low + high) / 2
    return best
