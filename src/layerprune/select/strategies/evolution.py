"""Evolution: a set that random swaps make better, each judged by making it."""

from __future__ import annotations

import numpy as np

from layerprune.select.local_search import LocalSearch
from layerprune.select.search import Search
from layerprune.select.strategies.exact import exact

#: Sets that are made and measured, in all.
EVALUATIONS = 200

_OFFSPRING = 8
_TRIES = 30  # to find an offspring that is new and fits


def evolution(search: Search) -> tuple[int, ...] | None:
    """Choose by swap mutations at constant budget, judged by the harm measured (EvoPress, arXiv 2410.14649).

    Starts from the exact choice. Each generation makes some offspring of the best set, in each of which a few removals
    gave way to others within the same budgets, measures what each does to the output, and keeps the best.

    Args:
        search: a problem whose harm can be measured; its seed decides the swaps.

    Returns:
        A proven set within the budgets; None where there is none.
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
