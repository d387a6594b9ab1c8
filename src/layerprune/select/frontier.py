"""Computes the least total impact for every size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerprune.select.conflicts import exclusions_of
from layerprune.select.constraints import Exclusion, Limit, Pieces, amount
from layerprune.select.milp import GAP, Milp
from layerprune.select.problem import Problem

_POINTS = 10


@dataclass(frozen=True)
class Point:
    """A removed size, the least sum of impacts that removes as much, and the removals of that sum."""

    size: float
    impact: float
    chosen: tuple[int, ...] = ()


def frontier(problem: Problem, pieces: Pieces, bans: Sequence[Exclusion] | None = None) -> tuple[Point, ...]:
    """Find the least sum of impacts for sizes from a tenth of the most that can go together up to that most.

    The sums are predictions; the sets are checked on the layer graph, not proven.

    Args:
        problem: the removals and their impacts; its budgets do not count.
        pieces: the sizes that removals take.
        bans: sets that do not hold together; told from the layer graph if None.
    """
    known = exclusions_of(problem.graph, problem.removals) if bans is None else list(bans)
    programme = Milp(len(problem.removals))
    most = amount(pieces, programme.most(pieces, [], known))
    found: dict[float, Point] = {}
    for low in np.linspace(most / _POINTS, most * (1 - GAP), _POINTS) if most else ():
        chosen = programme.least(problem.impacts, [Limit(pieces, low=float(low))], known)
        if chosen:
            size = amount(pieces, chosen)
            found[size] = Point(size, problem.impact(chosen), tuple(chosen))
    return tuple(point for _, point in sorted(found.items()))
