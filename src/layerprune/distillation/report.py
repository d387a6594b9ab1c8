"""The report of a distillation: time, losses, gain on held-out data, and why it ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerprune.tables import ShownAsTable, Table, Toned, brief

_PARTS = 8
_ROWS = 12
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Distillation(ShownAsTable):
    """The result of a distillation.

    Attributes:
        num_steps: steps taken, with those before a resumption.
        num_planned: steps that the recipe asks for.
        seconds: wall time, with that before a resumption.
        losses: of every step.
        looks: (step, divergence of the output on held-out data) of each evaluation; the first is before training.
        unit: unit of the divergence.
        best_step: the step after which the divergence was least; 0 where no evaluation was better than the first.
        stopped: why the training ended.
        num_trained: number of trained weights.
        hidden: the transforms whose tensors were matched.
        notes: notes for the user.
    """

    num_steps: int
    num_planned: int
    seconds: float
    losses: tuple[float, ...]
    looks: tuple[tuple[int, float], ...]
    unit: str
    best_step: int
    stopped: str
    num_trained: int
    hidden: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def before(self) -> float:
        """Divergence of the output on held-out data, before the first step."""
        return self.looks[0][1]

    @property
    def after(self) -> float:
        """Divergence of the output on held-out data, with the weights that were kept."""
        return dict(self.looks)[self.best_step]

    @property
    def kept(self) -> bool:
        """Whether the model has new weights."""
        return self.best_step > 0

    def curve(self, parts: int = _PARTS) -> list[float]:
        """Mean loss of each of ``parts`` equal parts of the steps."""
        count = min(parts, len(self.losses))
        return [float(np.mean(part)) for part in np.array_split(self.losses, count)] if count else []

    @property
    def _headline(self) -> str:
        return f"{self.num_steps:,} of {self.num_planned:,} steps in {_duration(self.seconds)}: {self.stopped}"

    def as_table(self) -> Table:
        """One row for each evaluation, thinned where there are many; the kept one is named."""
        chosen = {0, self.best_step, self.looks[-1][0]}
        spread = {round(place) for place in np.linspace(0, len(self.looks) - 1, _ROWS)}
        looks = [look for place, look in enumerate(self.looks) if place in spread or look[0] in chosen]
        kept = f"after step {self.best_step:,}" if self.kept else "the model stays as it was"
        return Table(
            title=self._headline,
            facts=(
                (f"{self.unit}, on held-out data", f"{self.before:.4g} → {self.after:.4g} ({kept})"),
                ("numbers trained", f"{self.num_trained:,}"),
                ("hidden states matched", _some(self.hidden)),
            ),
            columns=("step", "divergence", ""),
            rows=tuple(
                (f"{step:,}", f"{value:.4g}", Toned("kept", "good") if self.kept and step == self.best_step else "")
                for step, value in looks
            ),
            notes=self.notes,
            num_left=0,
        )

    def __repr__(self) -> str:
        change = f"{self.before:.4g} → {self.after:.4g} ({self.unit})"
        return brief(self, f"{self.num_steps:,} steps in {_duration(self.seconds)}, held-out {change}")

    def __str__(self) -> str:
        lines = [
            self._headline,
            f"  {self.unit}, on held-out data: {self.before:.4g} → {self.after:.4g}"
            + (f" (after step {self.best_step:,})" if self.kept else " (the model stays as it was)"),
        ]
        if self.losses:
            lines.append(f"  loss: {' '.join(f'{value:.3g}' for value in self.curve())}")
        lines.append(f"  {self.num_trained:,} numbers trained; hidden states matched: {_some(self.hidden)}")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
