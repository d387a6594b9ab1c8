"""Finds the smallest set of removals that takes given groups out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerprune.select.constraints import Exclusion, Limit
from layerprune.select.problem import Problem
from layerprune.select.search import Search

_ROUNDS = 12


def cover(
    problem: Problem, groups: Sequence[str], fixed: Sequence[int], besides: Sequence[float]
) -> tuple[int, ...] | None:
    """Find removals that take groups out and are proven together; budgets do not count.

    The set includes the removals in ``fixed``; ``besides`` is, for each removal, the size of the groups that it takes
    unasked.

    Returns:
        The set with the least sum of ``besides``, then of the impacts; None where none was found.
    """
    search = Search(problem)
    search.rounds = _ROUNDS
    takers = [tuple(i for i, r in enumerate(problem.removals) if group in r.groups) for group in groups]
    needs = [Limit({some: 1.0}, low=1.0) for some in [*takers, *((i,) for i in fixed)]]
    impacts = problem.impacts / max(float(np.abs(problem.impacts).max(initial=0.0)), 1e-30)
    costs = np.asarray(besides, dtype=float) / max(max(besides, default=0.0), 1.0) + 1e-2 / len(impacts) * (1 + impacts)

    def solve(limits: Sequence[Limit], bans: Sequence[Exclusion]) -> Sequence[int]:
        return search.programme.least(costs, [*limits, *needs], bans)

    return search.first_valid(solve)
