"""The selection problem: removals, what they take, budgets, and how a choice is proven."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layerprune.graph import LayerGraph
from layerprune.proof import Removal
from layerprune.select.constraints import Limit, Pieces

#: How far below the most that fits under a cap a choice may stay for less impact, as a share of that most.
SLACK = 0.1

#: From this share of a cap below it, a choice counts as filling the cap.
NEAR = 0.02


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
        total: how much of it the model holds; caps are shares of that.
        argument: the argument that sets the budget, for messages.
    """

    name: str
    pieces: Pieces
    measure: Callable[[Sequence[int]], float]
    at_most: float = math.inf
    at_least: float = 0.0
    is_filled: bool = False
    show: Callable[[float], str] = lambda amount: f"{amount:,.0f}"
    total: float = math.nan
    argument: str = ""

    @property
    def limit(self) -> Limit:
        """The bounds, on what adds up."""
        return Limit(self.pieces, self.at_least, self.at_most)

    def amount_text(self, amount: float) -> str:
        """An amount as a share of what the model holds, where that is known."""
        return self.show(amount) if math.isnan(self.total) else f"{amount / self.total:.1%}"

    def argument_text(self, amount: float) -> str:
        """The least value of the argument that allows an amount, rounded up."""
        value = amount if math.isnan(self.total) else amount / self.total
        digits = 10.0 ** (math.floor(math.log10(value)) - 2) if value > 0 else 1.0
        return f"{math.ceil(value / digits - 1e-9) * digits:.3g}"


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
        prove: proves a set; raises :class:`Refusal` where it does not hold together.
        lower_removal: the part of ``prove`` that runs nothing.
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
        slack: how far below the most that fits under a cap a choice may stay for less impact, as a share of that most.
    """

    graph: LayerGraph
    removals: Sequence[Removal]
    resources: Sequence[Resource]
    prove: Callable[[Sequence[int]], object]
    lower_removal: Callable[[Sequence[int]], object] = lambda some: None
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
    slack: float = SLACK

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


@dataclass(frozen=True, kw_only=True)
class CapUse:
    """How much of a cap a choice takes. All numbers are shares of what the model holds.

    Attributes:
        resource: what the cap is on, as ``parameters``.
        argument: the argument that sets the cap, as ``max_param_reduction``.
        cap: the largest share that may go.
        used: the share that the choice takes.
        fits: the largest share that was found to fit within all budgets; at least ``used``.
        in_all: the largest share that removals take together where no budget holds them back.
        held_by: another resource whose cap is filled; empty where there is none.
        is_proven: whether the solver has proven that no larger share fits.
    """

    resource: str
    argument: str
    cap: float
    used: float
    fits: float
    in_all: float
    held_by: str = ""
    is_proven: bool = True

    @property
    def is_near(self) -> bool:
        """Whether the choice fills the cap."""
        return self.used >= self.cap - NEAR


@dataclass(frozen=True)
class Selection:
    """A valid set of removals.

    Attributes:
        chosen: numbers of the removals.
        strategy: what chose them.
        recurrence: for each, how often the sum of impacts chooses it when the calibration data are drawn anew; empty
            where there is nothing to draw from.
        notes: what the user should know about the choice.
        cap_uses: how much of each cap the choice takes.
    """

    chosen: tuple[int, ...]
    strategy: str = ""
    recurrence: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    cap_uses: tuple[CapUse, ...] = ()
