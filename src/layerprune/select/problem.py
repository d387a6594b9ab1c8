"""The selection problem: removals, their sizes, budgets, and how a set is proven and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layerprune.graph import LayerGraph
from layerprune.proof import Removal
from layerprune.select.constraints import Limit, Pieces

#: How far a choice may stay below the most that fits under a cap for less impact, as a share of that most.
SLACK = 0.1

#: A choice fills a cap if it stays at most this share of the model below it.
NEAR = 0.02


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A quantity that removals save, and how much of it may or must go.

    Attributes:
        name: the quantity, for messages.
        pieces: the additive part of the savings.
        measure: the true saving of a proven set.
        at_most: the most that may go.
        at_least: the least that has to go.
        is_filled: whether as much as the cap allows should go.
        show: writes an amount for a message.
        total: the amount in the model, of which caps are shares.
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
        return Limit(self.pieces, self.at_least, self.at_most)

    def amount_text(self, amount: float) -> str:
        """An amount as a share of the total, where that is known."""
        return self.show(amount) if math.isnan(self.total) else f"{amount / self.total:.1%}"

    def argument_text(self, amount: float) -> str:
        """The least value of the argument that allows an amount, rounded up."""
        value = amount if math.isnan(self.total) else amount / self.total
        digits = 10.0 ** (math.floor(math.log10(value)) - 2) if value > 0 else 1.0
        return f"{math.ceil(value / digits - 1e-9) * digits:.3g}"


@dataclass(frozen=True)
class Effort:
    """The cost of measuring, in calls of the model on one batch.

    Attributes:
        num_batches: batches of calibration data.
        share: the share of a batch that a first look takes.
        spent: calls that measuring the impacts took.
    """

    num_batches: int
    share: float
    spent: float


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The removals to select from, their budgets, and how sets are proven and measured.

    Attributes:
        graph: the layer graph.
        removals: the removals.
        resources: the quantities that removals save, with their budgets.
        prove: proves a set; raises :class:`Refusal` where it does not hold together.
        lower_removal: the part of ``prove`` that runs no model.
        harm: the divergence of the output after each of several sets, ``(set,)``, ``nan`` where a set cannot be made;
            None where nothing can be measured.
        pairs: extra impact of pairs over the sum of their parts, ``(removal, removal)``, half of it at either place;
            None where unknown.
        resampled: impacts on resampled calibration data, ``(draw, removal)``; no rows with a single batch.
        has_data: whether impacts were measured on calibration data, so that small differences mean something.
        seed: for strategies that draw at random.
        best: the set with the least divergence times its handicap, by racing: gets the sets, their handicaps, the
            rounds before the first sets leave, and the batches for the last sets; None: ``harm`` tells.
        mended: the divergence after each of several sets, repaired; None where that cannot be measured.
        first_look: like ``harm``, on the first part of the data; None: ``harm`` tells.
        noise: the relative standard deviation of a first look.
        effort: the cost of measuring; None where unknown, and then no more than the usual is measured.
        size: with projections, the least that a set has to take of the model's size; None without projections.
        is_smaller: whether a proven set leaves a smaller model.
        slack: how far a choice may stay below the most that fits under a cap for less impact, as a share of that most.
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
        """One number per removal; unknown impacts count as worse than any known one."""
        impacts = np.array([removal.impact for removal in self.removals], dtype=float)
        return with_unknown(impacts)

    def impact(self, chosen: Sequence[int]) -> float:
        return float(self.impacts[list(chosen)].sum())


def with_unknown(impacts: np.ndarray) -> np.ndarray:
    """Impacts with a number worse than any known one in place of unknown ones."""
    known = impacts[np.isfinite(impacts)]
    worst = float(known.max()) if known.size else 1.0
    return np.where(np.isfinite(impacts), impacts, 10 * max(worst, 1.0))


@dataclass(frozen=True, kw_only=True)
class CapUse:
    """How much of a cap a choice takes. All numbers are shares of the model's total.

    Attributes:
        resource: the quantity under the cap, as ``parameters``.
        argument: the argument that sets the cap, as ``max_param_reduction``.
        cap: the largest share that may go.
        used: the share that the choice takes.
        fits: the largest share that was found to fit within all budgets; at least ``used``.
        in_all: the largest share that removals take together without any budget.
        held_by: another resource whose cap is filled; empty without one.
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
        return self.used >= self.cap - NEAR


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A valid set of removals.

    Attributes:
        chosen: numbers of the removals.
        strategy: the strategy that chose them.
        recurrence: for each removal, the share of resampled calibration data on which the sum of impacts chooses it;
            empty without draws.
        notes: messages about the choice for the user.
        cap_uses: how much of each cap the choice takes.
    """

    chosen: tuple[int, ...]
    strategy: str = ""
    recurrence: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    cap_uses: tuple[CapUse, ...] = ()
