"""Strategy ``quadratic``: least impact with interactions of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerprune.select.constraints import Exclusion, Limit
from layerprune.select.local_search import LocalSearch
from layerprune.select.search import Search
from layerprune.select.strategies.exact import exact

_RESTARTS = 8


def quadratic(search: Search) -> tuple[int, ...] | None:
    """Minimize ``zᵀQz`` by swaps from the exact choice without pairs, and again from mutations of the best set."""
    first = exact(search)
    pairs = search.problem.pairs
    if first is None or pairs is None:
        return first
    costs = np.diag(search.problem.impacts) + np.nan_to_num(pairs)

    rng = np.random.default_rng(search.problem.seed)

    def solve(limits: Sequence[Limit], bans: Sequence[Exclusion]) -> Sequence[int]:
        swaps = LocalSearch(costs, limits, bans)
        start = first if search.may(first) else search.programme.least(search.problem.impacts, limits, bans)
        best = swaps.improve(start) if start else []
        for _ in range(_RESTARTS if best else 0):
            other = swaps.mutated(best, rng)
            better = [] if other is None else swaps.improve(other)
            best = better if better and swaps.cost(better) < swaps.cost(best) else best
        return best

    return search.first_valid(solve) or first
