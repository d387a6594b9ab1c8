"""The report of a repair: every layer that was solved again, its gain, and what could not be solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from layerprune.fidelity import HeldOutVerdict
from layerprune.tables import Cell, ShownAsTable, Table, Toned, brief

_SHOWN = 8
_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class Refitted:
    """One transform that was solved again.

    Attributes:
        name: the transform.
        left: share of the squared distance from the original's tensor that the new weights leave, on held-out rows; 1
            where no weights helped.
        kept: whether the new weights were better there.
        strength: of the ridge; None where no weights helped.
        num_rows: tokens or places that the weights were fitted on.
        num_inputs: inputs of the matrix that was solved for.
    """

    name: str
    left: float
    kept: bool
    strength: float | None
    num_rows: int
    num_inputs: int

    def __repr__(self) -> str:
        left = f"{self.left:.1%} of the error left" if self.kept else "stays"
        return brief(self, f"{self.name}: {left}, {self.num_rows:,} rows for {self.num_inputs:,} inputs")


@dataclass(frozen=True, kw_only=True)
class RepairReport(ShownAsTable):
    """The result of a repair.

    Attributes:
        refitted: the transforms whose tensors the removals changed, front to back.
        refused: transforms that could not be solved again, changed or not, and why.
        before: divergence of the output before the repair, on the last quarter of the calibration data, on which the
            ridge strengths were chosen; nan where it was not measured.
        after: the same after the repair; better than on other data, as the final fit includes that quarter.
        unit: unit of ``before`` and ``after``.
        kept: whether the new weights are in the model; they are not where the output is no better with them.
        num_forwards: passes of the original and of the pruned model over all batches; most of the latter end early. The
            final comparison of outputs takes half a pass of the pruned model more.
        notes: messages for the user.
        verdict: on held-out data; None without any, as after :func:`repair`; :func:`compare` judges on your own data.
    """

    refitted: tuple[Refitted, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    before: float = float("nan")
    after: float = float("nan")
    unit: str = ""
    kept: bool = False
    num_forwards: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    verdict: HeldOutVerdict | None = None

    @property
    def num_kept(self) -> int:
        """The number of transforms with new weights."""
        return sum(one.kept for one in self.refitted) if self.kept else 0

    @property
    def _headline(self) -> str:
        return f"{self.num_kept} of {len(self.refitted)} transforms behind the gaps solved again"

    def as_table(self) -> Table:
        """One row for each transform: the share of the error that is left, rows and inputs of the fit."""
        rows: list[tuple[Cell, ...]] = []
        for one in self.refitted:
            left = f"{one.left:.1%}" if one.kept else Toned("stays", "quiet")
            rows.append((one.name, left, f"{one.num_rows:,}", f"{one.num_inputs:,}"))
        facts = [(f"{self.unit}, on data of the fit", f"{self.before:.4g} → {self.after:.4g}")] if self.unit else []
        if self.verdict is not None:
            facts += self.verdict.facts
        notes = [f"{name} could not be solved again: {reason}" for name, reason in list(self.refused.items())[:_SHOWN]]
        more = [
            (len(rows) - _ROWS, "rows are left out"),
            (len(self.refused) - _SHOWN, "more could not be solved again"),
        ]
        return Table(
            title=self._headline,
            facts=tuple(facts),
            columns=("transform", "error left", "rows", "inputs"),
            rows=tuple(rows[:_ROWS]),
            notes=(*notes, *(f"{num} {what}" for num, what in more if num > 0), *self.notes),
        )

    def __repr__(self) -> str:
        change = f", {self.before:.4g} → {self.after:.4g} ({self.unit})" if self.unit else ""
        return brief(self, f"{self.num_kept} of {len(self.refitted)} transforms solved again{change}")

    def __str__(self) -> str:
        lines = [self._headline]
        if self.unit:
            lines.append(f"  {self.unit}, on data of the fit: {self.before:.4g} → {self.after:.4g}")
        width = max((len(one.name) for one in self.refitted), default=0)
        for one in self.refitted:
            lines.append(f"  {one.name.ljust(width)}  {f'{one.left:.1%} left' if one.kept else 'stays'}")
        shown = list(self.refused.items())
        lines += [f"  {name}: {reason}" for name, reason in shown[:_SHOWN]]
        if len(shown) > _SHOWN:
            lines.append(f"  and {len(shown) - _SHOWN} more that could not be solved again")
        if self.verdict is not None:
            lines.append(str(self.verdict))
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def about_rows(refitted: Sequence[Refitted]) -> list[str]:
    """Note the transforms with more inputs than rows that they were fitted on."""
    short = [one for one in refitted if 0 < one.num_rows < one.num_inputs]
    if not short:
        return []
    worst = max(short, key=lambda one: one.num_inputs / one.num_rows)
    figures = f"'{worst.name}' has {worst.num_inputs:,} inputs and was fitted on {worst.num_rows:,} tokens or places"
    num = len(short) - 1
    others = f", {num} more transform{'s were' if num > 1 else ' was'} fitted on too few" if num else ""
    return [f"{figures}{others}: give calibration data with more tokens or places than inputs"]
