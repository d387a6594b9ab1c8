"""The mixed-integer linear programme of the selection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from layerprune.environment import quiet_solver
from layerprune.select.constraints import Exclusion, Limit, Pieces
from layerprune.select.local_search import LocalSearch

#: How far the largest set may stay below the optimum: far within the slack.
GAP = 0.005

#: The share by which the least cost may be missed, for the solver's tolerances.
EXACT = 1e-4

_FINEST = 0.01  # of the largest cost: the solver's absolute tolerance of 1e-6 is then that of EXACT

_WORK = 600_000  # nodes times rows: ends before the clock, so that a choice does not depend on the machine
_FEWEST_NODES = 20
_MOST_NODES = 2000
_SECONDS = 120.0

#: Coefficients by column, and the bounds of their sum.
_Row: TypeAlias = tuple[dict[int, float], float, float]


class Milp:
    """Solves for sets of removals with scipy's ``milp``, exactly where the allowed steps suffice.

    Attributes:
        is_cut_short: whether a solver has stopped before its answer was proven optimal.
    """

    def __init__(self, num_removals: int) -> None:
        self.num = num_removals
        self.is_cut_short = False

    def most(self, pieces: Pieces, limits: Sequence[Limit], bans: Sequence[Exclusion], gap: float = GAP) -> list[int]:
        """The removals that take the most of some pieces within limits, up to a gap; empty where none fit."""
        columns = _Columns(self.num, [pieces, *(limit.pieces for limit in limits)], bans)
        gains = columns.spread(pieces)
        return self.run(-gains, columns, limits, bans, gap)[0]

    def least(
        self, costs: np.ndarray, limits: Sequence[Limit], bans: Sequence[Exclusion], gap: float = EXACT
    ) -> list[int]:
        """The removals of least cost within limits, up to a gap; empty where none has to go."""
        columns = _Columns(self.num, [limit.pieces for limit in limits], bans)
        spread = np.concatenate([costs, np.zeros(len(columns.groups))])
        chosen, is_proven = self.run(spread, columns, limits, bans, gap)
        kept = np.ones(len(spread), dtype=bool)
        while chosen:
            # Differences below the solver's tolerance count as none, so costlier removals, which no better set can
            # hold, are left out, and the others are scaled anew.
            cap = _most_of_one(costs, chosen)
            fewer = kept & (spread <= cap)
            if cap >= _FINEST * np.abs(spread[kept]).max() or fewer.sum() == kept.sum():
                break
            kept = fewer
            spread = np.where(kept, spread, 0.0)
            finer, is_proven = self.run(spread, columns, limits, bans, gap, kept)
            chosen = min([chosen, finer] if finer else [chosen], key=lambda some: float(costs[some].sum()))
        return chosen if is_proven or not chosen else LocalSearch(costs, limits, bans).improve(chosen)

    def run(
        self,
        costs: np.ndarray,
        columns: _Columns,
        limits: Sequence[Limit],
        bans: Sequence[Exclusion],
        gap: float,
        kept: np.ndarray | None = None,
    ) -> tuple[list[int], bool]:
        from scipy.optimize import Bounds, LinearConstraint, milp  # half a second, which `inspect` can do without
        from scipy.sparse import csr_array

        rows = [*columns.rows(), *(columns.row_of(limit) for limit in limits), *map(columns.row_against, bans)]
        if not rows:
            rows = [({0: 0.0}, -math.inf, math.inf)]
        entries = [(n, column, value) for n, (row, _, _) in enumerate(rows) for column, value in row.items()]
        numbers, places, values = zip(*entries, strict=True)
        matrix = csr_array((values, (numbers, places)), shape=(len(rows), columns.num))
        low, high = (np.array([row[side] for row in rows]) for side in (1, 2))
        bounds = LinearConstraint(matrix, low, high)  # pyright: ignore[reportArgumentType]  # its stubs know scalars only
        scale = max(float(np.abs(costs).max()), 1e-30)
        # A group lies between its largest member and their sum: integer members make it integer, without branching.
        whole = np.repeat([1, 0], [self.num, len(columns.groups)])
        nodes = min(_MOST_NODES, max(_FEWEST_NODES, _WORK // len(rows))) if gap <= GAP else _FEWEST_NODES
        options = {"time_limit": _SECONDS, "node_limit": nodes, "mip_rel_gap": gap}
        most = np.ones(columns.num) if kept is None else kept.astype(float)
        with quiet_solver():
            result = milp(
                costs / scale,
                constraints=bounds,
                integrality=whole,
                bounds=Bounds(0, most),  # pyright: ignore[reportArgumentType]  # as above
                options=options,
            )
        is_proven = result.status == 0
        if result.x is None:
            return [], is_proven
        self.is_cut_short |= not is_proven
        return [i for i in range(self.num) if result.x[i] > 0.5], is_proven


def _most_of_one(costs: np.ndarray, chosen: Sequence[int]) -> float:
    """The most that a removal may cost in a set no costlier than ``chosen``; removals of cost below 0 win it back."""
    return float(costs[list(chosen)].sum() - np.minimum(costs, 0.0).sum())


class _Columns:
    """The variables: one per removal, then one per group in pieces or bans."""

    def __init__(self, num: int, some: Iterable[Pieces], bans: Sequence[Exclusion]) -> None:
        named = [takers for pieces in some for takers in pieces]
        named += [group for ban in bans for group in ban.limit.pieces]
        self.groups: list[tuple[int, ...]] = [group for group in dict.fromkeys(named) if len(group) > 1]
        self.places: dict[tuple[int, ...], int] = {group: place for place, group in enumerate(self.groups, start=num)}
        self.num_removals = num
        self.num = num + len(self.groups)

    def place(self, group: tuple[int, ...]) -> int:
        return self.places.get(group, group[0])

    def spread(self, pieces: Pieces) -> np.ndarray:
        found = np.zeros(self.num)
        for takers, size in pieces.items():
            found[self.place(takers)] += size
        return found

    def rows(self) -> list[_Row]:
        """Rows that make a group go when one of its members goes."""
        found: list[_Row] = []
        for group, place in self.places.items():
            found.append(({place: 1.0, **{i: -1.0 for i in group}}, -math.inf, 0.0))
            found += [({place: 1.0, i: -1.0}, 0.0, math.inf) for i in group]
        return found

    def row_of(self, limit: Limit) -> _Row:
        """The limit as shares: the solver's tolerances expect numbers near one."""
        sizes = self.spread(limit.pieces)
        scale = (
            limit.high if math.isfinite(limit.high) and limit.high > 0 else max(limit.low, float(sizes.max()), 1e-30)
        )
        row = {column: float(size / scale) for column, size in enumerate(sizes) if size}
        return row or {0: 0.0}, limit.low / scale, limit.high / scale

    def row_against(self, ban: Exclusion) -> _Row:
        limit = ban.limit
        return {self.place(group): size for group, size in limit.pieces.items()}, -math.inf, limit.high
