"""Swaps: a choice made better by one removal in, one out, or both, where an exact solver stops early."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.sparse import csr_array

from layerprune.culprits import Ban

_STEPS = 500
_FEW = 200  # removals, up to which two at a time are tried
_ENOUGH = 1e-9  # of the cost: what counts as better


class Swaps:
    """Sets of removals, what they cost and what they take; moves from one to the next.

    Args:
        costs: impact of each removal on the diagonal, of pairs beside it; symmetric, ``(n, n)``, or ``(n,)`` for none
            of pairs. A set costs the sum of the block that it spans.
        bundles: elements that go with any one of some removals; see :func:`layerprune.cost.params.bundles`.
        banned: what must not be chosen together.
    """

    def __init__(self, costs: np.ndarray, bundles: Mapping[tuple[int, ...], float], banned: Sequence[Ban]) -> None:
        self.own = costs if costs.ndim == 1 else costs.diagonal()
        self.pairs = None if costs.ndim == 1 else costs - np.diag(self.own)
        self.sizes = np.array(list(bundles.values()), dtype=float)
        self.takers = _incidence(list(bundles), len(self.own))
        lists = {each: row for row, each in enumerate(dict.fromkeys(e for ban in banned for e in ban.alternatives))}
        self.lists = _incidence(list(lists), len(self.own))
        self.banned = _incidence([tuple(lists[each] for each in ban.alternatives) for ban in banned], len(lists))
        self.num_lists = np.array([len(set(ban.alternatives)) for ban in banned])
        standing = csr_array(self.banned @ self.lists)  # in how many lists of a ban a removal stands
        self.most_at_once = np.asarray(standing.max(axis=1).toarray()).ravel() if banned else np.zeros(0)

    def cost(self, chosen: Sequence[int]) -> float:
        """What a set costs."""
        some = list(chosen)
        pairs = 0.0 if self.pairs is None else float(self.pairs[np.ix_(some, some)].sum())
        return float(self.own[some].sum()) + pairs

    def size(self, chosen: Sequence[int]) -> float:
        """What a set takes."""
        return float(self.sizes @ (self.takers @ self._indicator(chosen) > 0))

    def improve(self, chosen: Sequence[int], low: float, high: float) -> list[int]:
        """Move to the best neighbour for as long as that lowers the cost.

        Args:
            chosen: a set that takes between ``low`` and ``high`` elements.
            low: the least that a set may take.
            high: the most that a set may take.

        Returns:
            A set that takes between ``low`` and ``high``, and costs no more.
        """
        held = tuple(sorted(chosen))
        for _ in range(_STEPS):
            cost, better = min(self._moves(held, low, high), default=(np.inf, held))
            if not cost < self.cost(held) * (1 - _ENOUGH):
                break
            held = better
        return list(held)

    def _moves(self, held: tuple[int, ...], low: float, high: float) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Neighbours in reach and their costs: of those that lack the same, the cheapest."""
        few = len(self.own) <= _FEW
        for num_out in (0, 1, 2) if few else (0, 1):
            for out in combinations(held, num_out):
                left = tuple(i for i in held if i not in out)
                if num_out and low <= self.size(left) <= high:
                    yield self.cost(left), left
                yield from self._cheapest_entry(left, low, high)
                if few and num_out < 2:
                    for first in np.flatnonzero(self._entries(left, 0.0, high)[0]):
                        yield from self._cheapest_entry((*left, int(first)), low, high)

    def _cheapest_entry(
        self, held: tuple[int, ...], low: float, high: float
    ) -> Iterator[tuple[float, tuple[int, ...]]]:
        fits, costs = self._entries(held, low, high)
        if fits.any():
            entry = int(np.where(fits, costs, np.inf).argmin())
            yield float(costs[entry]), tuple(sorted((*held, entry)))

    def _entries(self, held: tuple[int, ...], low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        """Which removals may join a set, and what the set costs then."""
        inside = self._indicator(held)
        taken = self.takers @ inside > 0
        sizes = float(self.sizes @ taken) + np.where(taken, 0.0, self.sizes) @ self.takers
        fits = (inside == 0) & ~self._forbidden(inside) & (sizes >= low) & (sizes <= high)
        costs = self.cost(held) + self.own
        return fits, costs if self.pairs is None else costs + 2 * self.pairs[:, list(held)].sum(1)

    def _forbidden(self, inside: np.ndarray) -> np.ndarray:
        """Which removals would complete what is banned, by standing in each list that a set has none of."""
        free = np.asarray(self.lists @ inside == 0)
        missing = self.num_lists - self.banned @ np.logical_not(free)
        last = ((missing == 1) @ self.banned > 0) & free
        forbidden = last @ self.lists > 0
        near = np.flatnonzero((missing > 1) & (missing <= self.most_at_once))
        if near.size:
            standing = csr_array(self.banned[near] @ self.lists.multiply(free[:, None])).toarray()
            forbidden |= (standing >= missing[near, None]).any(0)
        return forbidden

    def _indicator(self, chosen: Sequence[int]) -> np.ndarray:
        inside = np.zeros(len(self.own))
        inside[list(chosen)] = 1
        return inside


def _incidence(sets: Sequence[tuple[int, ...]], num: int) -> csr_array:
    """One row per set, one column per member."""
    rows = [row for row, some in enumerate(sets) for _ in set(some)]
    columns = [member for some in sets for member in set(some)]
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(sets), num))
