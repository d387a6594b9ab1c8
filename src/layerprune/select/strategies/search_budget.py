"""Number of forwards for a search, as a share of those of greedy removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerprune.impact import FINAL, going_on_of
from layerprune.select.constraints import Limit
from layerprune.select.local_search import Amounts, LocalSearch
from layerprune.select.search import Search

#: Share of the model calls of :func:`greedy` that scoring and choosing may use. Calls that reuse outputs count in full.
#: A longer search overfits: a quarter more finds sets that are better on the calibration data only
#: (docs/benchmarks/selection.md).
SHARE = 0.1

#: Relative noise above which sets race longer before the first are dropped; below it, more sets race.
NOISY = 0.15

_FINALISTS = (8, 16, 32)
_ROUNDS = (2, 4, 8)


@dataclass(frozen=True)
class Race:
    """A race between sets.

    Attributes:
        num: number of sets.
        first: rounds before the first halving.
        final: batches that the last two sets are measured on.
    """

    num: int = _FINALISTS[0]
    first: int = _ROUNDS[0]
    final: float = FINAL

    def calls(self, share: float) -> float:
        """Calls of the model, in batches, with one of the original per round; a round is ``share`` of a batch."""
        found, done, number = 0.0, 0.0, 0
        while (going_on := going_on_of(self.num, number, done, self.first, self.final)) > 1:
            found, done, number = found + share * (going_on + 1), done + share, number + 1
        return found


def search_budget(search: Search) -> float:
    """Model calls left for the choice, in batches, at least 0."""
    effort = search.problem.effort
    return 0.0 if effort is None else max(0.0, SHARE * effort.num_batches * sets_of_greedy(search) - effort.spent)


def race(search: Search, left: float) -> Race:
    """The longest race with at most ``left`` calls; at least the shortest."""
    effort = search.problem.effort
    if effort is None:
        return Race()
    finals = sorted({min(FINAL, effort.num_batches), effort.num_batches})
    races = [Race(final=final) for final in finals]
    if search.problem.noise > NOISY:
        races += [Race(first=first, final=finals[-1]) for first in _ROUNDS[1:]]
    else:
        races += [Race(num, final=finals[-1]) for num in _FINALISTS[1:]]
    return [races[0], *(one for one in races[1:] if one.calls(effort.share) <= left)][-1]


def sets_of_greedy(search: Search) -> int:
    """Number of sets that greedy would measure if divergences were sums of impacts."""
    costs, held, found = search.problem.impacts, tuple[int, ...](), 0
    caps = [limit.without_low() for limit in search.limits]
    swaps, aim = LocalSearch(costs, caps, search.bans), Amounts(Limit(search.aim), len(costs))
    while search.is_filling or not held or aim.of(_indicator(held, len(costs))) < 1:
        inside = _indicator(held, len(costs))
        gains = aim.with_each(inside) - aim.of(inside)
        fits = swaps.entries(held, reaching=False)[0] & (gains > 0)
        if not fits.any():
            break
        found += int(fits.sum())
        held = (*held, int(np.where(fits, costs / np.maximum(gains, 1e-30), np.inf).argmin()))
    return found


def _indicator(held: Sequence[int], num: int) -> np.ndarray:
    inside = np.zeros(num)
    inside[list(held)] = 1
    return inside
