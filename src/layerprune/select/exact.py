"""Exact: the set with the least sum of impacts, by integer programming."""

from __future__ import annotations

import numpy as np

from layerprune.select.search import Search

_REFINEMENTS = 6  # halvings


def exact(search: Search, impacts: np.ndarray | None = None) -> tuple[int, ...] | None:
    """Choose the removals whose impacts add up to the least, within the budgets.

    Caps are used first: two programmes, one for the most that fits under them, and one for the least impact among the
    sets that come within :data:`~layerprune.select.search.SLACK` of that. Where something has to go, as for a latency,
    it is the least impact that does it.

    Args:
        search: the problem, and what is known of it.
        impacts: in place of those that the removals have.

    Returns:
        A proven set within the budgets; None where there is none.
    """
    costs = search.problem.impacts if impacts is None else impacts
    most: tuple[int, ...] | None = None
    if search.is_filling and search.floor is None:
        most = search.fill()
        if most is None:
            return None
    least = search.first_valid(lambda limits, bans: search.programme.least(costs, limits, bans))
    return most if least is None else _refined(search, least, costs)


def _refined(search: Search, chosen: tuple[int, ...], costs: np.ndarray) -> tuple[int, ...]:
    """Let less go where a set saves more than has to go: halve, between what is too little and what is enough."""
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
