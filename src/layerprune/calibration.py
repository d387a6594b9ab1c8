"""Calibration data: what impacts are measured on, read once and checked."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.errors import CalibrationError, InputsError
from layerprune.inputs import Inputs, as_inputs

#: Fewer samples than this say little about which of two removals harms less.
FEW_SAMPLES = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """One item of calibration data.

    Attributes:
        item: as the user gave it, on the model's device.
        inputs: the arguments of the forward that it stands for.
    """

    item: Any
    inputs: Inputs

    @property
    def num_samples(self) -> int:
        """The number of samples; 1 where no batch dimension can be told."""
        return self.inputs.batch_size or 1

    @property
    def mask(self) -> Tensor | None:
        """``(sample, token)``, 1 where a token counts and 0 where it pads; None where the inputs say nothing of it."""
        mask = self.inputs.kwargs.get("attention_mask")
        return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def read_calibration(data: Iterable[Any], model: nn.Module) -> tuple[Batch, ...]:
    """Read all batches, and bring their tensors to the model's device.

    The batches are kept, as every pass has to see the same ones; a few hundred samples are enough to rank removals.

    Args:
        data: a tensor, tuple (positional), dict (keyword) or object that the model's forward takes, batch after batch.
        model: the model; its first parameter names the device.

    Raises:
        CalibrationError: there is no batch, the data are one batch and no iterable of batches, or reading fails.
    """
    if isinstance(data, (Tensor, dict, str)) or not hasattr(data, "__iter__"):
        raise CalibrationError(
            f"calibration is a {type(data).__name__}; give an iterable of batches, as [batch] for a single one"
        )
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    batches: list[Batch] = []
    try:
        for item in data:
            inputs = as_inputs(item).map(lambda tensor: tensor.to(device))
            batches.append(Batch(item, inputs))
    except Exception as error:  # the user's own loader, or what it yields
        raise CalibrationError(
            f"batch {len(batches)} of the calibration data could not be read: {type(error).__name__}: {error}"
        ) from error
    if not batches:
        raise CalibrationError("the calibration data hold no batch; a generator that was used up yields none")
    return tuple(batches)


@contextmanager
def fitting() -> Generator[None]:
    """Say of inputs that do not fit that they are calibration data, and what may be wrong with these."""
    try:
        yield
    except InputsError as error:
        raise CalibrationError(
            f"the first batch of the calibration data does not fit: {error}. Labels do not belong in it: "
            "for a loader of (x, y) pass calibration=[x for x, y in loader]"
        ) from error


def about_calibration(batches: tuple[Batch, ...]) -> list[str]:
    """What the user should know about the data."""
    num_samples = sum(batch.num_samples for batch in batches)
    notes: list[str] = []
    if not batches:
        return notes
    if num_samples < FEW_SAMPLES:
        notes.append(f"{num_samples} calibration samples are few: another draw may rank the removals differently")
    if len(batches) == 1:
        notes.append("one calibration batch gives no intervals: pass several smaller ones")
    return notes
