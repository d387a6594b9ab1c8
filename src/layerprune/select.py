"""Selection: the set of removals that comes closest to a budget at the least impact, exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from layerprune.graph import LayerGraph
from layerprune.marks import CannotRealise
from layerprune.proof import Removal

#: How far below the most that fits under a cap a choice may stay for the sake of less impact, as a share of the cap.
SLACK = 0.1

_ROUNDS = 60
_RAISES = 4
_NODES = 2000  # before the clock, so that a choice does not depend on the machine
_SECONDS = 120.0


@dataclass(frozen=True)
class Selection:
    """A valid set of removals.

    Attributes:
        chosen: numbers of the removals.
        num_params: how many parameters the set removes, shared ones counted once.
        notes: what the user should know about the choice.
    """

    chosen: tuple[int, ...]
    num_params: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """What there is to choose from.

    Attributes:
        graph: the layer graph.
        removals: the removals.
        own_params: for each removal, the parameters that no set shares: sliced channels, unused ones.
        check: proves a set and returns how many parameters it removes, or raises :class:`CannotRealise`.
    """

    graph: LayerGraph
    removals: Sequence[Removal]
    own_params: Sequence[int]
    check: Callable[[Sequence[int]], int]


def select(problem: Problem, cap: int) -> Selection:
    """Choose removals that together take out at most ``cap`` parameters.

    Two exact programmes (scipy's ``milp``): first the most parameters that fit under the cap; then, among the sets that
    come within :data:`SLACK` of it, the one with the least sum of impacts. Sets that turn out not to be valid together
    are forbidden, and the programme is solved again.

    Args:
        problem: the removals, and how to prove a set of them.
        cap: the largest number of parameters that may go.
    """
    banned: list[tuple[int, ...]] = [pair for pair in conflicts(problem.graph, problem.removals)]
    solver = _Programme(problem)
    limit, raised = cap, 0
    best: Selection | None = None
    for _ in range(_ROUNDS):
        chosen = solver.solve(limit, banned)
        if not chosen:
            return best or Selection((), 0, ("no removal is small enough for the budget",))
        try:
            size = problem.check(chosen)
        except CannotRealise:
            banned += _culprits(problem, chosen)
            continue
        if size <= cap and (best is None or size > best.num_params):
            best = Selection(tuple(chosen), size, tuple(solver.notes))
        # Slices that two removals share make the sum an estimate: where it missed, ask again for less, or for more.
        if size > cap:
            limit -= size - cap
        elif size < (1 - SLACK) * cap and size < solver.estimate(chosen) and raised < _RAISES:
            limit, raised = limit + (cap - size) // 2, raised + 1
        else:
            break
    return best or _one_by_one(problem, cap)


def conflicts(graph: LayerGraph, removals: Sequence[Removal]) -> list[tuple[int, int]]:
    """Pairs of removals that exclude each other, or of which one makes the other needless."""
    spans = [(min(r.dead), max(r.dead)) for r in removals]
    points = [_points(graph, r) for r in removals]
    found: list[tuple[int, int]] = []
    order = sorted(range(len(removals)), key=lambda i: spans[i][0])
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if spans[j][0] > spans[i][1] + 1 and not points[i] & points[j]:
                break
            if _excludes(graph, removals[i], removals[j]) or _excludes(graph, removals[j], removals[i]):
                found.append((min(i, j), max(i, j)))
    return sorted(found)


def _points(graph: LayerGraph, removal: Removal) -> frozenset[int]:
    return frozenset(removal.cut.substitutes) | {graph.layers[m].outputs[0] for m, _ in removal.cut.dropped}


def _excludes(graph: LayerGraph, one: Removal, other: Removal) -> bool:
    """Whether ``one`` cannot go, or need not, once ``other`` has gone."""
    if one.dead <= other.dead or set(one.cut.substitutes) & set(other.cut.substitutes):
        return True
    sources = [graph.values[s].layer for s in one.cut.substitutes.values() if s not in other.cut.substitutes]
    if any(source in other.dead for source in sources):
        return True
    where = [graph.values[y].layer for y in one.cut.substitutes] + [m for m, _ in one.cut.dropped]
    if all(layer in other.dead for layer in where):
        return True
    for merge in {m for m, _ in one.cut.dropped}:
        left = {v for m, v in one.cut.dropped | other.cut.dropped if m == merge}
        if {(v,) for v in left} >= set(graph.layers[merge].operands):
            return True
    return False


class _Programme:
    """The integer programme: one variable per removal, and one per bundle of parameters that the same removals take."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.notes: list[str] = []
        takers: dict[int, list[int]] = {}
        for index, removal in enumerate(problem.removals):
            for param in removal.realisation.params:
                takers.setdefault(param, []).append(index)
        bundles: dict[tuple[int, ...], int] = {}
        for param, who in takers.items():
            key = tuple(who)
            bundles[key] = bundles.get(key, 0) + problem.graph.size_of_param[param]
        self.bundles = list(bundles)
        self.bundle_sizes = list(bundles.values())
        self.sizes = np.array([*problem.own_params, *bundles.values()], dtype=float)
        impacts = np.array([r.impact for r in problem.removals], dtype=float)
        known = impacts[np.isfinite(impacts)]
        worst = float(known.max()) if known.size else 1.0
        self.impacts = np.where(np.isfinite(impacts), impacts, 10 * max(worst, 1.0))

    def solve(self, cap: int, banned: Sequence[tuple[int, ...]]) -> list[int]:
        """Choose removals; empty where none fits."""
        if cap < 1:
            return []
        rows = self.rows(banned)
        shares = self.sizes / cap  # of the cap, not absolute: the solver's tolerances want numbers near one
        most = self.run(-shares, [*rows, (shares, -math.inf, 1.0)], gap=SLACK / 20)
        if most is None or (reached := float(shares @ most)) <= 0:
            return []
        costs = np.concatenate([self.impacts, np.zeros(len(self.bundles))])
        least = self.run(costs, [*rows, (shares, max(reached - SLACK, 1 / cap), 1.0)])
        solution = most if least is None else least
        return [i for i in range(len(self.problem.removals)) if solution[i] > 0.5]

    def estimate(self, chosen: Sequence[int]) -> int:
        """The number of parameters that a set would remove if no two of its removals shared slices."""
        bundles = zip(self.bundle_sizes, self.bundles, strict=True)
        return sum(size for size, takers in bundles if set(takers) & set(chosen)) + sum(
            self.problem.own_params[i] for i in chosen
        )

    def rows(self, banned: Sequence[tuple[int, ...]]) -> list[tuple[dict[int, float], float, float]]:
        """A bundle goes when one of its takers does; a banned set does not go whole."""
        first = len(self.problem.removals)
        found: list[tuple[dict[int, float], float, float]] = []
        for place, takers in enumerate(self.bundles, start=first):
            found.append(({place: 1.0, **{i: -1.0 for i in takers}}, -math.inf, 0.0))
            found += [({place: 1.0, i: -1.0}, 0.0, math.inf) for i in takers]
        found += [({i: 1.0 for i in some}, -math.inf, len(some) - 1.0) for some in banned]
        return found

    def run(
        self, costs: np.ndarray, rows: Sequence[tuple[dict[int, float] | np.ndarray, float, float]], gap: float = 1e-4
    ) -> np.ndarray | None:
        entries: list[tuple[int, int, float]] = []
        for number, (row, _, _) in enumerate(rows):
            items = row.items() if isinstance(row, dict) else enumerate(row)
            entries += [(number, int(column), float(value)) for column, value in items if value]
        numbers, columns, values = zip(*entries, strict=True)
        matrix = csr_array((values, (numbers, columns)), shape=(len(rows), len(self.sizes)))
        low, high = (np.array([row[side] for row in rows]) for side in (1, 2))
        bounds = LinearConstraint(matrix, low, high)  # pyright: ignore[reportArgumentType]  # its stubs know scalars only
        scale = max(float(np.abs(costs).max()), 1e-30)
        whole = np.ones(len(self.sizes))
        options = {"time_limit": _SECONDS, "node_limit": _NODES, "mip_rel_gap": gap}
        result = milp(costs / scale, constraints=bounds, integrality=whole, bounds=Bounds(0, 1), options=options)
        if result.x is None:
            return None
        if result.status == 1 and "the choice" not in " ".join(self.notes):
            self.notes.append("the choice is the best found in the time allowed, not proven to be the best")
        return np.round(result.x)


def _culprits(problem: Problem, chosen: Sequence[int]) -> list[tuple[int, ...]]:
    """The pairs of a set that fail by themselves; the whole set where none does."""
    found: list[tuple[int, ...]] = []
    near = [(i, j) for i, j in combinations(chosen, 2) if _touch(problem.removals[i], problem.removals[j])]
    for pair in near:
        try:
            problem.check(pair)
        except CannotRealise:
            found.append(pair)
    return found or [tuple(chosen)]


def _touch(one: Removal, other: Removal) -> bool:
    """Whether two removals lie near enough to disturb each other."""
    return min(one.dead) <= max(other.dead) + 50 and min(other.dead) <= max(one.dead) + 50


def _one_by_one(problem: Problem, cap: int) -> Selection:
    """Take removals by impact per parameter for as long as they hold together: the way out that always ends."""
    order = sorted(range(len(problem.removals)), key=lambda i: _price(problem.removals[i]))
    chosen: list[int] = []
    size = 0
    for index in order:
        try:
            total = problem.check([*chosen, index])
        except CannotRealise:
            continue
        if size < total <= cap:
            chosen.append(index)
            size = total
    return Selection(
        tuple(sorted(chosen)), size, ("chosen one by one: too many sets of removals did not hold together",)
    )


def _price(removal: Removal) -> float:
    impact = removal.impact if math.isfinite(removal.impact) else 1e9
    return impact / max(removal.num_params, 1)
