"""Compares a pruned model with the original on held-out data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from layerprune.capture import FEW_SAMPLES, Batch, Sandbox, on_batch, real_sandbox
from layerprune.errors import CalibrationError
from layerprune.fidelity.divergence import Divergence, class_dim, divergence_of
from layerprune.tables import brief


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The difference between a pruned model and the original on held-out data.

    Attributes:
        divergence: of the output, in ``unit``; nan where the output is not finite.
        kept: share of predictions with the original's most likely class; for ``values`` 1 minus the squared relative
            change, at least 0.
        kind: of the output: ``distribution`` or ``values``.
        unit: unit of the divergence.
        num_samples: number of samples.
    """

    divergence: float
    kept: float
    kind: str
    unit: str
    num_samples: int

    def __repr__(self) -> str:
        return brief(self, f"{self.kept:.1%} kept, {self.divergence:.4g} on {self.num_samples} samples ({self.unit})")


@dataclass(frozen=True)
class HeldOutVerdict:
    """The comparison on data without influence on fitted weights or on settings of the fits.

    Attributes:
        before: before the repair, with fitted projections.
        after: of the final model.
        num_fitted: number of samples that weights were fitted on.
        on_fitted: divergence of the final model on the data of the fit; nan where it was not measured.
    """

    before: HeldOut
    after: HeldOut
    num_fitted: int
    on_fitted: float = math.nan

    @property
    def notes(self) -> tuple[str, ...]:
        notes: list[str] = []
        if self.after.num_samples < FEW_SAMPLES:
            notes.append(
                f"the held-out verdict rests on {self.after.num_samples} samples, which are few: another draw may say "
                f"something else; {4 * FEW_SAMPLES} calibration samples leave {FEW_SAMPLES} for it"
            )
        if self.after.divergence > self.before.divergence:
            notes.append(
                "on the held-out data the output is worse than without the repair: pass more calibration data, or "
                "prune with repair='mean' or repair=None"
            )
        return tuple(notes)

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """The verdict and the divergence as labels and values, for tables."""
        lines = [line.strip().partition(": ") for line in str(self).splitlines()]
        return tuple((label, value) for label, _, value in lines)

    def __str__(self) -> str:
        after, before = self.after, self.before
        what = "of the predictions keep their class" if after.kind == "distribution" else "of the output is kept"
        if math.isnan(after.divergence):
            return "Held-out verdict: not known, the pruned model's output is not finite there"
        changed = before != after
        unrepaired = f" ({before.kept:.1%} unrepaired)" if changed else ""
        divergences = f"{before.divergence:.4g} → {after.divergence:.4g}" if changed else f"{after.divergence:.4g}"
        return (
            f"Held-out verdict: {after.kept:.1%} {what}{unrepaired}, on {after.num_samples} samples that no weight was "
            f"fitted on ({self.num_fitted} were)\n  {after.unit}: {divergences}"
        )

    def __repr__(self) -> str:
        kept = f"{self.before.kept:.1%} kept before the repair, {self.after.kept:.1%} after"
        return brief(self, f"{kept}, on {self.after.num_samples} samples")


def hold_out(batches: Sequence[Batch], share: float = 0.25) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Split off the last part of the data: whole batches, or samples where there are fewer than ``1 / share`` batches.

    Returns the remaining and the held-out batches; no held-out batches where the data cannot be split.
    """
    if len(batches) >= 1 / share:
        first = len(batches) - max(1, round(len(batches) * share))
        return tuple(batches[:first]), tuple(batches[first:])
    num_samples = sum(batch.num_samples for batch in batches)
    left, kept, held = round(num_samples * share), list(batches), list[Batch]()
    while left > 0:
        last = kept.pop()
        num = last.num_samples
        head, tail = (last.samples(0, num - left), last.samples(num - left, num)) if num > left else (None, last)
        if tail is None or (head is None and num > left):  # the samples of the batch cannot be separated
            return tuple(batches), ()
        held.insert(0, tail)
        kept += [] if head is None else [head]
        left -= tail.num_samples
    return tuple(kept), tuple(held)


def hold_out_of(
    model: nn.Module, batches: Sequence[Batch], share: float = 0.25
) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Like :func:`hold_out`, but a batch stays whole where the model does not run on a part of it."""
    kept, held = hold_out(batches, share)
    parts = [batch for batch in (*kept, *held) if not any(batch is one for one in batches)]
    shade = real_sandbox(model) if parts else None
    try:
        for part in parts:
            assert shade is not None
            _output(shade, part, 0)
    except CalibrationError:
        return tuple(batches), ()
    return kept, held


def held_by(
    original: nn.Module,
    pruned: nn.Module,
    batches: Sequence[Batch],
    harm: Divergence | None,
) -> HeldOut | None:
    """Compare a pruned model with the original on held-out batches; None where there is nothing to compare.

    ``harm`` is derived from the model and its output if None.

    Raises:
        CalibrationError: a forward raises.
    """
    shades = [real_sandbox(model) for model in (original, pruned)]
    change = size = same = counted = 0.0
    for number, batch in enumerate(batches):
        outs = [_output(shade, batch, number) for shade in shades]
        harm = harm or divergence_of(original, outs[0])
        if not harm.outputs(outs[0]):
            return None
        found = harm.between(outs[0], outs[1], batch.mask)
        change, size = change + found[0], size + found[1]
        if harm.kind == "distribution":
            one, other = (harm.outputs(out)[0] for out in outs)
            found = _same_class(one, other, batch.mask)
            same, counted = same + found[0], counted + found[1]
    if harm is None or size == 0:
        return None
    left = change / size
    kept = same / counted if harm.kind == "distribution" and counted else max(0.0, 1 - left)
    return HeldOut(
        divergence=left,
        kept=kept,
        kind=harm.kind,
        unit=harm.unit,
        num_samples=sum(batch.num_samples for batch in batches),
    )


def _same_class(original: Tensor, other: Tensor, mask: Tensor | None) -> tuple[float, float]:
    """Number of predictions that keep their most likely class, and number of predictions."""
    dim = class_dim(original)
    same = original.argmax(dim) == other.argmax(dim)
    if mask is not None and mask.shape == same.shape:
        return float((same * mask).sum()), float(mask.sum())
    return float(same.sum()), float(same.numel())


def _output(shade: Sandbox, batch: Batch, number: int) -> Any:
    with on_batch(shade.model, batch.inputs, f"batch {number} of the held-out data"):
        return shade.forward(batch.inputs, fast_path=False)
