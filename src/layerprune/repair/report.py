"""The report of a repair: every layer that was solved again, its gain, and what could not be solved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from layerprune.fidelity import HeldOutVerdict

_SHOWN = 8


@dataclass(frozen=True)
class Refitted:
    """One transform that was solved again.

    Attributes:
        name: the transform.
        left: share of the squared distance from the original's tensor that the new weights leave, on rows that they
            were not fitted on; 1 where nothing helped.
        kept: whether the new weights were any better there.
        strength: of the ridge; None where nothing helped.
        num_rows: tokens or places that it was fitted on.
        num_inputs: inputs of the matrix that was solved for.
    """

    name: str
    left: float
    kept: bool
    strength: float | None
    num_rows: int
    num_inputs: int


@dataclass(frozen=True)
class RepairReport:
    """What a repair did to a model.

    Attributes:
        refitted: the transforms that the removals had moved, front to back.
        refused: transforms that could not be solved again whether moved or not, and why.
        before: harm to the output before the repair, on the last quarter of the data of the fit, on which the strengths
            were chosen; nan where it was not measured.
        after: after it: better than on other data, as the new weights were fitted on that quarter, too, in the end.
        unit: what the two are.
        kept: whether the new weights are in the model; where they would make the output worse, they are not.
        num_forwards: passes of the original and of the pruned model over all batches, most of the latter's cut short;
            the last look at the output comes on top, half a pass of the pruned model.
        notes: what the user should know.
        verdict: on data that nothing was fitted on; None where none were held out, as by
            :func:`repair`: :func:`compare` judges that on data of your own.
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
        """How many transforms have new weights."""
        return sum(one.kept for one in self.refitted) if self.kept else 0

    def __str__(self) -> str:
        lines = [f"{self.num_kept} of {len(self.refitted)} transforms behind the gaps solved again"]
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
