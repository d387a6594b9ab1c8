"""Improves a choice by adding, dropping or exchanging one removal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from layerprune.select.constraints import Exclusion, Limit

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_STEPS = 500
_FEW = 200  # removals up to which two at a time are tried
_MOST_OUT = 3  # removals that one mutation takes out
_ENOUGH = 1e-9  # of the cost: the smallest gain that counts as better


class LocalSearch:
    """Moves between sets of removals within limits, to lower their cost.

    Args:
        costs: impact of each removal on the diagonal, of pairs beside it; symmetric, ``(n, n)``, or ``(n,)`` without
            pairs. A set costs the sum of the block that it spans.
        limits: bounds on the amounts that a set takes.
        bans: sets that must not be chosen.
    """

    def __init__(self, costs: np.ndarray, limits: Sequence[Limit], bans: Sequence[Exclusion]) -> None:
        self.own = costs if costs.ndim == 1 else costs.diagonal()
        self.pairs = None if costs.ndim == 1 else costs - np.diag(self.own)
        plain = [ban for ban in bans if not ban.family]
        bounds = [*limits, *(ban.limit for ban in bans if ban.family)]
        self.limits = [Amounts(limit, len(self.own)) for limit in bounds]
        groups = list(dict.fromkeys(group for ban in plain for group in ban.alternatives))
        numbers = {group: number for number, group in enumerate(groups)}
        self.groups = incidence(groups, len(self.own))
        self.bans = incidence([tuple(numbers[group] for group in ban.alternatives) for ban in plain], len(groups))
        self.wanting = np.array([len(set(ban.alternatives)) - 1 for ban in plain])

    def cost(self, chosen: Sequence[int]) -> float:
        some = list(chosen)
        pairs = 0.0 if self.pairs is None else float(self.pairs[np.ix_(some, some)].sum())
        return float(self.own[some].sum()) + pairs

    def fits(self, chosen: Sequence[int]) -> bool:
        inside = self._indicator(chosen)
        return all(limit.low <= limit.of(inside) <= limit.high for limit in self.limits)

    def improve(self, chosen: Sequence[int]) -> list[int]:
        """Move from a set within the limits to its best neighbour, as long as that lowers the cost."""
        held = tuple(sorted(chosen))
        for _ in range(_STEPS):
            cost, better = min(self._moves(held), default=(np.inf, held))
            if not cost < self.cost(held) - _ENOUGH * abs(self.cost(held)):
                break
            held = better
        return list(held)

    def neighbours(self, held: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The sets within the limits after one removal in, one out, or both, by cost; with few removals two of each.

        Only the cheapest of the sets that lack the same removals.
        """
        return list(dict.fromkeys(tuple(sorted(some)) for _, some in sorted(self._moves(held))))

    def entries(self, held: Sequence[int], *, reaching: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Which removals may join a set, ``(removal,)`` of booleans, and the cost of the larger set, ``(removal,)``.

        With ``reaching`` the larger set has to reach the lower bounds.
        """
        inside = self._indicator(held)
        present = np.minimum(self.groups @ inside, 1.0)
        tight = np.equal(self.bans @ present, self.wanting) * 1.0  # bans that lack one group only
        would_break = ((tight @ self.bans) * (1.0 - present)) @ self.groups
        fits = (inside == 0) & (would_break == 0)
        for limit in self.limits:
            amounts = limit.with_each(inside)
            fits &= amounts <= limit.high
            if reaching:
                fits &= amounts >= limit.low
        costs = self.cost(held) + self.own
        return fits, costs if self.pairs is None else costs + 2 * self.pairs[:, list(held)].sum(1)

    def mutated(self, held: Sequence[int], rng: np.random.Generator) -> tuple[int, ...] | None:
        """Take removals out at random, and others in until the set is within its limits; None where that fails."""
        num_out = int(rng.integers(1, min(_MOST_OUT, len(held)) + 1))
        out = set(rng.choice(list(held), num_out, replace=False).tolist())
        left = tuple(i for i in held if i not in out)
        while not self.fits(left):
            fits = self.entries(left, reaching=False)[0]
            fits[list(out)] = False
            entries = np.flatnonzero(fits)
            if not entries.size:
                return None
            left = (*left, int(rng.choice(entries)))
        return tuple(sorted(left))

    def _moves(self, held: tuple[int, ...]) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Neighbours with their costs; the cheapest of those that lack the same removals."""
        few = len(self.own) <= _FEW
        for num_out in (0, 1, 2) if few else (0, 1):
            for out in combinations(held, num_out):
                left = tuple(i for i in held if i not in out)
                if num_out and self.fits(left):
                    yield self.cost(left), left
                yield from self._cheapest_entry(left)
                if few and num_out < 2:
                    for first in np.flatnonzero(self.entries(left, reaching=False)[0]):
                        yield from self._cheapest_entry((*left, int(first)))

    def _cheapest_entry(self, held: tuple[int, ...]) -> Iterator[tuple[float, tuple[int, ...]]]:
        fits, costs = self.entries(held)
        if fits.any():
            entry = int(np.where(fits, costs, np.inf).argmin())
            yield float(costs[entry]), tuple(sorted((*held, entry)))

    def _indicator(self, chosen: Sequence[int]) -> np.ndarray:
        inside = np.zeros(len(self.own))
        inside[list(chosen)] = 1
        return inside


class Amounts:
    """A limit as arrays; a set is given by its indicator, ``(removal,)``."""

    def __init__(self, limit: Limit, num: int) -> None:
        self.low, self.high = limit.low, limit.high
        self.sizes = np.array(list(limit.pieces.values()), dtype=float)
        self.takers = incidence(list(limit.pieces), num)

    def of(self, inside: np.ndarray) -> float:
        return float(self.sizes @ (self.takers @ inside > 0))

    def with_each(self, inside: np.ndarray) -> np.ndarray:
        """The amounts that the set takes with each removal added, ``(removal,)``."""
        taken = self.takers @ inside > 0
        return float(self.sizes @ taken) + np.where(taken, 0.0, self.sizes) @ self.takers


def incidence(sets: Sequence[tuple[int, ...]], num: int) -> csr_array:
    """One row per set, one column per member."""
    rows = [row for row, some in enumerate(sets) for _ in set(some)]
    columns = [member for some in sets for member in set(some)]
    from scipy.sparse import csr_array  # takes a while to import

    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(sets), num))
