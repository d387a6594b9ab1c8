"""When to prune during training, and how much in each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerprune.errors import ArgumentError
from layerprune.select import check_share


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Rounds of pruning at given optimizer steps or epochs.

    Shares are shares of the parameters before the first round, and caps: what a round leaves unused of its share, the
    next one may use.

    Args:
        start: the step or epoch after which the first round takes place; 1 is the first one.
        every: steps or epochs between two rounds; needed for several.
        num_rounds: number of rounds.
        share: share that each round may remove; give this or ``final_share``.
        final_share: share that may be gone after the last round.
        curve: how ``final_share`` is reached: ``linear``, or ``cubic``, in which early rounds remove more
            (arXiv 1710.01878, equation 1).
        unit: of ``start`` and ``every``.

    Raises:
        ArgumentError, BudgetError: a number is out of its range.

    Examples:
        >>> plan = Schedule(start=100, every=50, num_rounds=4, final_share=0.4, curve="cubic")
        >>> [plan.time_of(n) for n in range(1, 5)]
        [100, 150, 200, 250]
        >>> [round(plan.share_after(n), 3) for n in range(1, 5)]
        [0.231, 0.35, 0.394, 0.4]
    """

    start: int
    every: int | None = None
    num_rounds: int = 1
    share: float | None = None
    final_share: float | None = None
    curve: Literal["linear", "cubic"] = "linear"
    unit: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        for name in ("start", "num_rounds", *(("every",) if self.num_rounds != 1 or self.every is not None else ())):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ArgumentError(f"{name} is {value!r:.60}; give a number of {self.unit}s or rounds from 1 on")
        if self.curve not in ("linear", "cubic") or self.unit not in ("step", "epoch"):
            raise ArgumentError(
                f"curve is {self.curve!r:.40}, unit {self.unit!r:.40}; give linear or cubic, step or epoch"
            )
        if (self.share is None) == (self.final_share is None):
            raise ArgumentError("give either share=, of each round, or final_share=, of all rounds together")
        name, value = ("share", self.share) if self.final_share is None else ("final_share", self.final_share)
        check_share(name, value)
        if self.share is not None and self.curve != "linear":
            raise ArgumentError("curve= is about final_share=; with share= all rounds may remove the same")
        check_share("share × num_rounds", self.share_after(self.num_rounds))

    def time_of(self, number: int) -> int:
        """The step or epoch after which a round takes place; rounds count from 1."""
        return self.start + (number - 1) * (self.every or 0)

    def share_after(self, number: int) -> float:
        """The share of the parameters before the first round that may be gone after a round."""
        if self.final_share is None:
            return number * (self.share or 0.0)
        part = number / self.num_rounds
        return self.final_share * (part if self.curve == "linear" else 1 - (1 - part) ** 3)

    def due(self, time: int, num_done: int) -> int | None:
        """The number of the round that is due after a step or epoch; None if there is none.

        Args:
            time: the step or epoch that has just ended, from 1 on.
            num_done: number of rounds that have taken place.
        """
        number = num_done + 1
        return number if number <= self.num_rounds and time >= self.time_of(number) else None

    def cap(self, number: int, num_first: int, num_now: int) -> float:
        """The share of the present parameters that a round may remove, between 0 and 1.

        Args:
            number: the round.
            num_first: number of parameters before the first round.
            num_now: number of parameters now.
        """
        left = (1 - self.share_after(number)) * num_first
        return max(0.0, 1 - left / num_now) if num_now else 0.0
