"""The state of a training: step, losses, and the best weights so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_FAR = 10.0  # times the loss at the start
_WINDOW = 10  # steps whose mean is compared with it


@dataclass(eq=False)
class TrainingState:
    """How far a training is. All of it is in a checkpoint.

    Attributes:
        losses: of every step so far.
        looks: (step, harm on the held-out data).
        best: what was trained, at the best look but the first; empty where the first is the best.
        seconds: wall time so far.
        stopped: why it ended; empty while it goes on.
    """

    losses: list[float] = field(default_factory=list[float])
    looks: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    best: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    seconds: float = 0.0
    stopped: str = ""

    @property
    def best_step(self) -> int:
        """The step of the best look; of equals the first."""
        return min(self.looks, key=lambda look: look[1])[0]

    def look(self, step: int, harm: float, state: Mapping[str, Tensor]) -> None:
        """Take in a look at the held-out data, and the weights that it was taken with."""
        harm = harm if math.isfinite(harm) else math.inf
        if step and harm < min(other for _, other in self.looks):
            self.best = state  # first, so that an interrupt between the two does no harm
        self.looks.append((step, harm))

    def looks_since_best(self) -> int:
        """How many looks there were since the best one."""
        return sum(step > self.best_step for step, _ in self.looks)

    def has_diverged(self) -> bool:
        """Whether the mean loss of the last steps lies far above that of the first ones."""
        if len(self.losses) < 2 * _WINDOW:
            return False
        start, now = self.losses[:_WINDOW], self.losses[-_WINDOW:]
        return sum(now) > _FAR * sum(start)

    def record(self) -> dict[str, Any]:
        """All but the weights, as JSON can hold it."""
        looks = [[step, harm if math.isfinite(harm) else None] for step, harm in self.looks]
        return {"losses": list(self.losses), "looks": looks, "seconds": self.seconds, "stopped": self.stopped}

    @classmethod
    def of(cls, record: Mapping[str, Any], best: Mapping[str, Tensor]) -> TrainingState:
        """Read what :meth:`record` gave."""
        looks = [(int(step), math.inf if harm is None else float(harm)) for step, harm in record["looks"]]
        return cls([float(loss) for loss in record["losses"]], looks, best, record["seconds"], record["stopped"])
