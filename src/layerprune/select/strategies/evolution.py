"""Strategy ``evolution``: improves a set by random swaps that are measured."""

from __future__ import annotations

import numpy as np

from layerprune.select.local_search import LocalSearch
from layerprune.select.search import Search
from layerprune.select.strategies.exact import exact

#: Sets measured in all.
EVALUATIONS = 200

_OFFSPRING = 8
_TRIES = 30  # mutations per generation; many are known already or exceed a budget


def evolution(search: Search) -> tuple[int, ...] | None:
    """Choose by swap mutations at constant budget and measured divergence (EvoPress, arXiv 2410.14649).

    The search starts from the exact choice. Each generation swaps a few removals of the best set for others within the
    budgets, measures these offspring, and keeps the best. The seed of the problem determines the swaps.
    """
    best = exact(search)
    if best is None:
        return None
    rng = np.random.default_rng(search.problem.seed)
    least = float(search.harm([best])[0])
    seen = {best}
    while len(seen) < EVALUATIONS:
        offspring = _offspring(search, best, rng, seen)
        if not offspring:
            break
        harms = search.harm(offspring)
        for place in np.argsort(np.nan_to_num(harms, nan=np.inf), kind="stable"):
            if not harms[place] < least:
                break
            if search.is_valid(child := offspring[place]):
                best, least = child, float(harms[place])
                break
    return best


def _offspring(
    search: Search, parent: tuple[int, ...], rng: np.random.Generator, seen: set[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    swaps = LocalSearch(search.problem.impacts, search.limits, search.bans)
    found: list[tuple[int, ...]] = []
    for _ in range(_TRIES):
        child = swaps.mutated(parent, rng)
        if child is not None and child not in seen:
            seen.add(child)
            found.append(child)
        if len(found) == _OFFSPRING:
            break
    return found
