"""The state of a training: step, losses, and the best weights so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_FAR = 10.0  # a loss that is so many times the first has diverged
_WINDOW = 10  # number of steps in each of the two means compared


@dataclass(eq=False, kw_only=True)
class TrainingState:
    """State of a training; a checkpoint holds all of it.

    Attributes:
        losses: of every step so far.
        looks: (step, divergence on held-out data) of each evaluation.
        best: the trained weights at the best evaluation; empty where the first evaluation is the best.
        seconds: wall time so far.
        stopped: why the training ended; empty while it runs.
    """

    losses: list[float] = field(default_factory=list[float])
    looks: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    best: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    seconds: float = 0.0
    stopped: str = ""

    @property
    def best_step(self) -> int:
        """Step of the best evaluation; the first of equal ones."""
        return min(self.looks, key=lambda look: look[1])[0]

    def look(self, step: int, harm: float, state: Mapping[str, Tensor]) -> None:
        """Add an evaluation on held-out data, and keep its weights where it is the best."""
        harm = harm if math.isfinite(harm) else math.inf
        if step and harm < min(other for _, other in self.looks):
            self.best = state  # first, so that an interrupt between the two loses nothing
        self.looks.append((step, harm))

    def looks_since_best(self) -> int:
        return sum(step > self.best_step for step, _ in self.looks)

    def has_diverged(self) -> bool:
        """Whether the mean loss of the last steps is far above that of the first steps."""
        if len(self.losses) < 2 * _WINDOW:
            return False
        start, now = self.losses[:_WINDOW], self.losses[-_WINDOW:]
        return sum(now) > _FAR * sum(start)

    def record(self) -> dict[str, Any]:
        """Everything except the weights, as JSON values."""
        looks = [[step, harm if math.isfinite(harm) else None] for step, harm in self.looks]
        return {"losses": list(self.losses), "looks": looks, "seconds": self.seconds, "stopped": self.stopped}

    @classmethod
    def of(cls, record: Mapping[str, Any], best: Mapping[str, Tensor]) -> TrainingState:
        looks = [(int(step), math.inf if harm is None else float(harm)) for step, harm in record["looks"]]
        losses = [float(loss) for loss in record["losses"]]
        return cls(losses=losses, looks=looks, best=best, seconds=record["seconds"], stopped=record["stopped"])
