"""The problem: what there is to choose from, what it takes, and how a choice is proven."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layerprune.graph import LayerGraph
from layerprune.proof import Removal
from layerprune.select.limit import Limit, Pieces


@dataclass(frozen=True)
class Resource:
    """One thing that removals save, and how much of it may or must go.

    Attributes:
        name: what is saved, for messages.
        pieces: what each removal saves, as far as that adds up.
        measure: what a proven set really saves.
        at_most: a cap on what may go.
        at_least: what has to go.
        is_filled: whether as much as the cap allows is to go.
        show: writes an amount for a message.
    """

    name: str
    pieces: Pieces
    measure: Callable[[Sequence[int]], float]
    at_most: float = math.inf
    at_least: float = 0.0
    is_filled: bool = False
    show: Callable[[float], str] = lambda amount: f"{amount:,.0f}"

    @property
    def limit(self) -> Limit:
        """The bounds, on what adds up."""
        return Limit(self.pieces, self.at_least, self.at_most)


@dataclass(frozen=True)
class Effort:
    """What measuring takes, in calls of the model on one batch.

    Attributes:
        num_batches: of calibration data.
        share: of a batch that a first look takes.
        spent: what the impacts took.
    """

    num_batches: int
    share: float
    spent: float


@dataclass(frozen=True)
class Problem:
    """What there is to choose from.

    Attributes:
        graph: the layer graph.
        removals: the removals.
        resources: what they save, and the budgets on it.
        prove: proves a set; raises :class:`~layerprune.marks.CannotRealise` where it does not hold together.
        realise: the part of ``prove`` that runs nothing.
        harm: what each of several sets does to the output when it is made, ``nan`` where it cannot be; None where
            nothing can be measured.
        pairs: what pairs cost more than their parts, ``(removal, removal)``, half of it at either place; None where
            that is not known.
        resampled: impacts on calibration data drawn anew, ``(draw, removal)``; of no rows where there is one batch.
        has_data: whether impacts were measured on calibration data, so that small differences mean something.
        seed: for strategies that draw.
        best: which of several sets does least when they are made, times its handicap, as a race of so many rounds
            before the first leave, and so many batches for the last, tells; None: ``harm`` tells.
        mended: what each of several sets does to the output when it is made and repaired; None where that cannot be.
        first_look: like ``harm``, on the first of the data only; None: ``harm`` tells.
        noise: the standard deviation of what that finds, relative to it.
        effort: what measuring takes; None where that is not known, and no more is made than always.
        size: of removals by projection, what they take of the model's size: a set has to take some. None without such.
        is_smaller: whether a proven set leaves a smaller model.
    """

    graph: LayerGraph
    removals: Sequence[Removal]
    resources: Sequence[Resource]
    prove: Callable[[Sequence[int]], object]
    realise: Callable[[Sequence[int]], object] = lambda some: None
    harm: Callable[[Sequence[Sequence[int]]], np.ndarray] | None = None
    pairs: np.ndarray | None = None
    resampled: np.ndarray | None = None
    has_data: bool = False
    seed: int = 0
    best: Callable[[Sequence[Sequence[int]], np.ndarray, int, float], int] | None = None
    mended: Callable[[Sequence[Sequence[int]]], np.ndarray] | None = None
    first_look: Callable[[Sequence[Sequence[int]]], np.ndarray] | None = None
    noise: float = 0.0
    effort: Effort | None = None
    size: Limit | None = None
    is_smaller: Callable[[Sequence[int]], bool] = lambda some: True

    @property
    def impacts(self) -> np.ndarray:
        """One number per removal; of those that are not known one that is worse than any."""
        impacts = np.array([removal.impact for removal in self.removals], dtype=float)
        return with_unknown(impacts)

    def impact(self, chosen: Sequence[int]) -> float:
        """The sum of a set's impacts."""
        return float(self.impacts[list(chosen)].sum())


def with_unknown(impacts: np.ndarray) -> np.ndarray:
    """Impacts with a number that is worse than any in place of those that are not known."""
    known = impacts[np.isfinite(impacts)]
    worst = float(known.max()) if known.size else 1.0
    return np.where(np.isfinite(impacts), impacts, 10 * max(worst, 1.0))


@dataclass(frozen=True)
class Selection:
    """A valid set of removals.

    Attributes:
        chosen: numbers of the removals.
        strategy: what chose them.
        recurrence: for each, how often the sum of impacts chooses it when the calibration data are drawn anew; empty
            where there is nothing to draw from.
        notes: what the user should know about the choice.
    """

    chosen: tuple[int, ...]
    strategy: str = ""
    recurrence: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
