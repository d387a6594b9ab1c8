"""Measures the output's divergence on held-out data before and after a repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from layerprune.capture import Batch, Sandbox
from layerprune.errors import CalibrationError, ended_by
from layerprune.fidelity import Divergence, divergence_of
from layerprune.impact import ends
from layerprune.inputs import Inputs, describe
from layerprune.modules import no_fast_path
from layerprune.tensors import tensors_by_place

_PARTS = 8  # of a batch: on the last of them the repaired model shows that it makes what its mended forward made


@dataclass(frozen=True, eq=False)
class Judged:
    """A batch to judge by, and what is known of it without another forward; None where something is not.

    Attributes:
        batch: the batch.
        original: what the original returns.
        before: what the pruned model returned before it was repaired.
        mended: what its forward returned whose tensors were changed one after the other as new weights would have
            changed them. That is what the repaired model returns, to rounding, if nothing went wrong.
    """

    batch: Batch
    original: Any = None
    before: Any = None
    mended: Any = None


@dataclass(frozen=True)
class RepairVerdict:
    """Harm to the output before and after a repair; without a unit where there is no output that could be compared."""

    before: float
    after: float
    unit: str


def judge(
    model: nn.Module,
    shades: tuple[Sandbox, Sandbox, Sandbox],
    batches: Sequence[Judged],
    harm: Divergence | None,
) -> RepairVerdict:
    """Hold the outputs of the pruned model, unrepaired and repaired, against the original's.

    Args:
        model: the original.
        shades: of the original, the pruned model, and the repaired one.
        batches: what to judge by.
        harm: how outputs are compared; told from the model and its output if None.
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
    """What the repaired model returns: run on a part of the batch where that confirms what is known, else on all."""
    if one.mended is not None:
        size = one.batch.num_samples
        part = one.batch.samples(size - max(1, size // _PARTS), size) if size > 1 else None
        if part is not None and _ends(shade, part, one.mended):
            return one.mended
    return _output(shade, one.batch)


def _ends(shade: Sandbox, part: Batch, mended: Any) -> bool:
    """Whether the repaired model makes of the last part of a batch what is known to come of all of it."""
    try:
        return ends(tensors_by_place(_output(shade, part)), tensors_by_place(mended))
    except CalibrationError:  # the forward may want the whole batch; that is run then
        return False


def _output(shade: Sandbox, batch: Batch) -> Any:
    """What a model returns.

    Raises:
        CalibrationError: the user's forward raised.
    """
    inputs = shade.adapt(batch.inputs)
    try:
        return _run(shade, inputs)
    except Exception as error:
        what = f"{type(shade.model).__name__}.forward raised while outputs were compared on {describe(inputs)}"
        raise CalibrationError(ended_by(what, error)) from error


def _run(shade: Sandbox, inputs: Inputs) -> Any:
    with shade.running(), no_fast_path():  # as where outputs are known already
        return shade.model(*inputs.args, **inputs.kwargs)
