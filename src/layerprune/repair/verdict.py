"""Measures the output's divergence on held-out data before and after a repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from layerprune.capture import Batch, Sandbox, on_batch
from layerprune.errors import CalibrationError
from layerprune.fidelity import Divergence, divergence_of
from layerprune.impact import ends
from layerprune.tensors import tensors_by_place

_PARTS = 8  # of a batch: on the last part the repaired model must return the output of the corrected forward


@dataclass(frozen=True, eq=False)
class Judged:
    """A batch to judge by, with the outputs that are known without another forward; None where one is not known.

    Attributes:
        batch: the batch.
        original: output of the original.
        before: output of the pruned model before its repair.
        mended: output of the pruned model's forward whose tensors were corrected one after the other; up to rounding
            that of the repaired model.
    """

    batch: Batch
    original: Any = None
    before: Any = None
    mended: Any = None


@dataclass(frozen=True)
class RepairVerdict:
    """Divergence of the output before and after a repair; the unit is empty where no output can be compared."""

    before: float
    after: float
    unit: str


def judge(
    model: nn.Module,
    shades: tuple[Sandbox, Sandbox, Sandbox],
    batches: Sequence[Judged],
    harm: Divergence | None,
) -> RepairVerdict:
    """Compare the outputs of the pruned model, before and after its repair, with those of the original ``model``.

    ``shades`` are sandboxes of the original, the pruned and the repaired model; without ``harm`` the divergence is told
    from the original and its output.
    """
    change, size = [0.0, 0.0], 0.0
    for one in batches:
        original = _output(shades[0], one.batch) if one.original is None else one.original
        others = [_output(shades[1], one.batch) if one.before is None else one.before, _after(shades[2], one)]
        harm = harm or divergence_of(model, original)
        if not harm.outputs(original):
            return RepairVerdict(float("nan"), float("nan"), "")
        found = [harm.between(original, other, one.batch.mask) for other in others]
        change = [total + one for total, (one, _) in zip(change, found, strict=True)]
        size += found[0][1]
    return RepairVerdict(change[0] / size, change[1] / size, "" if harm is None else harm.unit)


def _after(shade: Sandbox, one: Judged) -> Any:
    """The output of the repaired model: the known one if a run on a part of the batch confirms it, else a full run."""
    if one.mended is not None:
        size = one.batch.num_samples
        part = one.batch.samples(size - max(1, size // _PARTS), size) if size > 1 else None
        if part is not None and _ends(shade, part, one.mended):
            return one.mended
    return _output(shade, one.batch)


def _ends(shade: Sandbox, part: Batch, mended: Any) -> bool:
    """Whether the output on the last part of a batch is the last part of the known output."""
    try:
        return ends(tensors_by_place(_output(shade, part)), tensors_by_place(mended))
    except CalibrationError:  # the forward may need the whole batch, which runs then
        return False


def _output(shade: Sandbox, batch: Batch) -> Any:
    """The output of a model; raises CalibrationError where the user's forward raises."""
    with on_batch(shade.model, batch.inputs, "a batch whose outputs were compared"):
        return shade.forward(batch.inputs, fast_path=False)  # as where outputs are known already
