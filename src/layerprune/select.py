"""Selection: the set of removals that comes closest to a budget at the least impact, exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from layerprune.cost.params import Taken, bundles
from layerprune.culprits import Ban, Culprits, ban_rows
from layerprune.graph import LayerGraph
from layerprune.marks import CannotRealise
from layerprune.proof import Removal
from layerprune.swaps import Swaps

#: How far below the most that fits under a cap a choice may stay for the sake of less impact, as a share of that most.
SLACK = 0.1

_ROUNDS = 60
_WORK = 600_000  # nodes times rows: before the clock, so that a choice does not depend on the machine
_FEWEST_NODES = 20
_MOST_NODES = 2000
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
        taken: for each removal, the parameters that it takes.
        check: proves a set and returns how many parameters it removes, or raises :class:`CannotRealise`.
        realise: the part of ``check`` that runs nothing; raises :class:`CannotRealise` where that much fails already.
    """

    graph: LayerGraph
    removals: Sequence[Removal]
    taken: Sequence[Taken]
    check: Callable[[Sequence[int]], int]
    realise: Callable[[Sequence[int]], object] = lambda some: None


def select(problem: Problem, cap: int) -> Selection:
    """Choose removals that together take out at most ``cap`` parameters.

    Two exact programmes (scipy's ``milp``): first the most parameters that fit under the cap; then, among the sets that
    come within :data:`SLACK` of it, the one with the least sum of impacts. Sets that turn out not to be valid together
    are forbidden, and the programme is solved again.

    Args:
        problem: the removals, and how to prove a set of them.
        cap: the largest number of parameters that may go.
    """
    if not problem.removals:
        return Selection((), 0, ("nothing can be removed: every group is critical",))
    search = _Search(problem, cap)
    most = search.first_valid(lambda limit, banned: search.programme.most(limit, banned))
    if most is None:
        return (
            _one_by_one(problem, cap)
            if search.rounds <= 0
            else Selection((), 0, ("no removal is small enough for the budget",))
        )
    floor = (1 - SLACK) * most.num_params
    least = search.first_valid(lambda limit, banned: search.programme.least(limit, floor, banned))
    best = most if least is None else least
    return Selection(best.chosen, best.num_params, tuple(search.programme.notes))


class _Search:
    """Solves, proves, forbids what fails, and solves again."""

    def __init__(self, problem: Problem, cap: int) -> None:
        self.problem = problem
        self.cap = cap
        self.limit = cap
        self.rounds = _ROUNDS
        pairs = conflicts(problem.graph, problem.removals)
        self.banned = [*map(Ban.of, pairs), *_emptied(problem.graph, problem.removals)]
        self.programme = _Programme(problem)
        self.culprits = Culprits(problem.removals, problem.check, problem.realise)
        self.proven: dict[tuple[int, ...], int] = {}

    def first_valid(self, solve: Callable[[int, Sequence[Ban]], list[int]]) -> Selection | None:
        """The first solution that holds together and under the cap; None where there is none, or no more rounds."""
        while self.rounds > 0:
            chosen = tuple(solve(self.limit, self.banned))
            if not chosen:
                return None
            self.rounds -= 1
            try:
                size = self.proven[chosen] = self.proven.get(chosen) or self.problem.check(chosen)
            except CannotRealise:
                self.banned += self.culprits.among(chosen)
                continue
            if size <= self.cap:
                return Selection(chosen, size)
            self.limit -= size - self.cap  # together they take more than each by itself: ask for less
        return None


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


def _emptied(graph: LayerGraph, removals: Sequence[Removal]) -> list[Ban]:
    """Concats that would be left nothing to join: each of their operands is dropped by one removal or another."""
    droppers: dict[int, dict[int, list[int]]] = {}
    for index, removal in enumerate(removals):
        for merge, value in removal.cut.dropped:
            droppers.setdefault(merge, {}).setdefault(value, []).append(index)
    return [
        Ban(tuple(map(tuple, by_value.values())))
        for merge, by_value in droppers.items()
        if {(value,) for value in by_value} >= set(graph.layers[merge].operands)
    ]


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
        pieces = bundles(problem.graph, problem.taken)
        self.bundles = pieces
        self.stopped = False  # whether the last run ended before its answer was proven
        self.sizes = np.array([0.0] * len(problem.removals) + list(pieces.values()))
        impacts = np.array([r.impact for r in problem.removals], dtype=float)
        known = impacts[np.isfinite(impacts)]
        worst = float(known.max()) if known.size else 1.0
        self.impacts = np.where(np.isfinite(impacts), impacts, 10 * max(worst, 1.0))

    def most(self, cap: int, banned: Sequence[Ban]) -> list[int]:
        """The removals that take out the most under a cap; empty where none fits."""
        if cap < 1:
            return []
        shares = self.sizes / cap  # of the cap, not absolute: the solver's tolerances want numbers near one
        return self.run(-shares, [*self.rows(banned), (shares, -math.inf, 1.0)], gap=SLACK / 20)

    def least(self, cap: int, floor: float, banned: Sequence[Ban]) -> list[int]:
        """The removals of least impact that take out between a floor and a cap; empty where none do."""
        if cap < 1:
            return []
        shares = self.sizes / cap
        costs = np.concatenate([self.impacts, np.zeros(len(self.bundles))])
        chosen = self.run(costs, [*self.rows(banned), (shares, max(floor, 1.0) / cap, 1.0)])
        if not self.stopped or not chosen:
            return chosen
        return Swaps(self.impacts, self.bundles, banned).improve(chosen, max(floor, 1.0), cap)

    def rows(self, banned: Sequence[Ban]) -> list[tuple[dict[int, float], float, float]]:
        """A bundle goes when one of its takers does; what is banned does not go."""
        first = len(self.problem.removals)
        found: list[tuple[dict[int, float], float, float]] = []
        for place, takers in enumerate(self.bundles, start=first):
            found.append(({place: 1.0, **{i: -1.0 for i in takers}}, -math.inf, 0.0))
            found += [({place: 1.0, i: -1.0}, 0.0, math.inf) for i in takers]
        return found + ban_rows(banned, first + len(self.bundles))

    def run(
        self, costs: np.ndarray, rows: Sequence[tuple[dict[int, float] | np.ndarray, float, float]], gap: float = 1e-4
    ) -> list[int]:
        entries: list[tuple[int, int, float]] = []
        for number, (row, _, _) in enumerate(rows):
            items = row.items() if isinstance(row, dict) else enumerate(row)
            entries += [(number, int(column), float(value)) for column, value in items if value]
        numbers, columns, values = zip(*entries, strict=True)
        width = max(len(costs), 1 + max(columns))  # bans may have columns of their own, which cost nothing
        costs = np.concatenate([costs, np.zeros(width - len(costs))])
        matrix = csr_array((values, (numbers, columns)), shape=(len(rows), width))
        low, high = (np.array([row[side] for row in rows]) for side in (1, 2))
        bounds = LinearConstraint(matrix, low, high)  # pyright: ignore[reportArgumentType]  # its stubs know scalars only
        scale = max(float(np.abs(costs).max()), 1e-30)
        # A bundle lies between its takers' largest and their sum: whole takers make it whole, without branching on it.
        num_whole = len(self.problem.removals)
        whole = np.repeat([1, 0], [num_whole, width - num_whole])
        nodes = min(_MOST_NODES, max(_FEWEST_NODES, _WORK // len(rows)))
        options = {"time_limit": _SECONDS, "node_limit": nodes, "mip_rel_gap": gap}
        result = milp(costs / scale, constraints=bounds, integrality=whole, bounds=Bounds(0, 1), options=options)
        self.stopped = result.status != 0
        if result.x is None:
            return []
        if self.stopped and "the choice" not in " ".join(self.notes):
            self.notes.append("the choice is the best found in the steps allowed, not proven to be the best")
        return [i for i in range(len(self.problem.removals)) if result.x[i] > 0.5]


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
