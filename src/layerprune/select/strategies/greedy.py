"""Strategy ``greedy``: adds removals in turn, each time the one with the least measured impact."""

from __future__ import annotations

import numpy as np

from layerprune.select.constraints import amount
from layerprune.select.search import Search


def greedy(search: Search) -> tuple[int, ...] | None:
    """Add removals in turn by the divergence measured together with those before (SLEB, arXiv 2402.09025).

    Each step measures every removal that still fits: about n times k ablations to choose k of n removals. It takes the
    removal with the least divergence relative to its progress towards the budget.
    """
    aim = search.aim
    held: tuple[int, ...] = ()
    now = 0.0
    while search.is_filling or not held or not search.meets_targets(held):
        before = amount(aim, held)
        entries = [i for i in range(len(search.problem.removals)) if i not in held]
        sets = [tuple(sorted((*held, i))) for i in entries]
        gains = np.array([amount(aim, some) - before for some in sets])
        fitting = [place for place, some in enumerate(sets) if gains[place] > 0 and search.may(some)]
        harms = search.harm([sets[place] for place in fitting])
        prices = (harms - now) / gains[fitting]
        entered = False
        for place in np.argsort(np.nan_to_num(prices, nan=np.inf), kind="stable"):
            some = sets[fitting[place]]
            if np.isfinite(harms[place]) and search.is_proven(some) and search.is_below_caps(some):
                held, now, entered = some, float(harms[place]), True
                break
        if not entered:
            break
    return held if held and search.meets_targets(held) else None
