"""Strategy ``repaired``: repairs candidate sets and compares them after the repair."""

from __future__ import annotations

import numpy as np

from layerprune.select.constraints import amount
from layerprune.select.search import Search
from layerprune.select.strategies.exact import exact
from layerprune.select.strategies.resampled import choices, runners_up

#: Removals repaired at each step: those with the least divergence before the repair, relative to what they save.
WIDTH = 4

#: Whole sets repaired besides: the exact choice, its runners-up, and choices for resampled impacts.
SETS = 6


def repaired(search: Search) -> tuple[int, ...] | None:
    """Choose by the divergence after a repair.

    The search adds removals in turn. Each step repairs the most promising removals that still fit, together with those
    chosen before, and keeps the best after repair. The sets with the least sum of impacts are repaired, too; the best
    of all is taken. This takes about ``WIDTH`` k repairs and n k ablations to choose k of n removals.
    """
    assert search.problem.mended is not None
    steps, num_repairs = _one_by_one(search)
    sets = [] if steps is None else [steps]
    sets += [some for some in _whole_sets(Search(search.problem)) if some not in sets]
    if not sets:
        return None
    harms = np.nan_to_num(search.problem.mended(sets), nan=np.inf)
    search.notes.append(f"{num_repairs + len(sets)} sets were repaired and measured; the one of least impact is taken")
    return sets[int(harms.argmin())]


def _one_by_one(search: Search) -> tuple[tuple[int, ...] | None, int]:
    """The set found step by step, and the number of repairs."""
    assert search.problem.mended is not None
    aim, held, now, num_repairs = search.aim, tuple[int, ...](), 0.0, 0
    while search.is_filling or not held or not search.meets_targets(held):
        before = amount(aim, held)
        sets = [tuple(sorted((*held, i))) for i in range(len(search.problem.removals)) if i not in held]
        fitting = [some for some in sets if amount(aim, some) > before and search.may(some)]
        if not fitting:
            break
        gains = np.array([amount(aim, some) - before for some in fitting])
        base = float(search.harm([held])[0]) if held else 0.0
        prices = np.nan_to_num((search.harm(fitting) - base) / gains, nan=np.inf)
        order = [int(place) for place in np.argsort(prices, kind="stable") if np.isfinite(prices[place])]
        good: list[int] = []
        for place in order:
            if len(good) < WIDTH and search.is_proven(fitting[place]) and search.is_below_caps(fitting[place]):
                good.append(place)
        if not good:
            break
        left = search.problem.mended([fitting[place] for place in good])
        num_repairs += len(good)
        best = int(np.argmin(np.nan_to_num((left - now) / gains[good], nan=np.inf)))
        held, now = fitting[good[best]], float(left[best])
    return (held if held and search.meets_targets(held) else None), num_repairs


def _whole_sets(search: Search) -> list[tuple[int, ...]]:
    first = exact(search)
    if first is None:
        return []
    found = [first]
    for some in dict.fromkeys([*choices(search), *runners_up(search, first)]):
        if len(found) < SETS and some and some not in found and search.is_valid(some):
            found.append(some)
    return found
