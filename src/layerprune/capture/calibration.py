"""Reads calibration data once, checks them, and names the batch that fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from layerprune.capture.sandbox import Sandbox, real_sandbox, runs_on
from layerprune.errors import CalibrationError, InputsError, ended_by
from layerprune.inputs import ArgumentReader, Inputs, describe, why_mismatched
from layerprune.modules import parameters
from layerprune.tables import brief
from layerprune.tensors import map_tensors

#: ``loss(model, item)`` calls the model on an item of the calibration data and returns one number, less being better.
Loss: TypeAlias = Callable[[nn.Module, Any], Any]

#: With fewer samples, the impacts of two removals can hardly be told apart.
FEW_SAMPLES = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """One item of calibration data.

    Attributes:
        item: the user's item, on the model's device.
        inputs: arguments of the forward; with a loss, the arguments of its call of the model.
    """

    item: Any
    inputs: Inputs

    def __repr__(self) -> str:
        return brief(self, describe(self.inputs))

    @property
    def num_samples(self) -> int:
        """Number of samples; 1 without a batch dimension."""
        return self.inputs.batch_size or 1

    def samples(self, start: int, stop: int) -> Batch | None:
        """Part of the samples, as views; None where the item cannot be split by samples."""
        inputs = self.inputs.samples(start, stop)
        whole = Inputs((self.item,))
        some = whole.samples(start, stop)
        if some is None and type(self.item) in (list, tuple):  # a pair, as with labels
            whole = Inputs(tuple(self.item))
            some = whole.samples(start, stop)
            some = None if some is None else Inputs((type(self.item)(some.args),))
        if inputs is None or some is None or whole.batch_size != self.inputs.batch_size:
            return None
        return Batch(some.args[0], inputs)

    @property
    def mask(self) -> Tensor | None:
        """``(sample, token)``, 1 where a token counts and 0 where it pads; None where the inputs hold no such mask."""
        mask = self.inputs.kwargs.get("attention_mask")
        return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def given_calibration(data: Iterable[Any] | None, model: nn.Module, loss: Loss | None) -> tuple[Batch, ...] | None:
    """Read the user's data with :func:`read_calibration`; None without data.

    Raises:
        CalibrationError: there is a loss, but no data.
    """
    if data is not None:
        return read_calibration(data, model, loss)
    if loss is not None:
        raise CalibrationError("loss= needs calibration=, the items to call it on")
    return None


def read_calibration(data: Iterable[Any], model: nn.Module, loss: Loss | None = None) -> tuple[Batch, ...]:
    """Read all batches, and bring their tensors to the model's device.

    The batches are kept, because every pass needs the same ones; a few hundred samples are enough to rank removals.

    Args:
        data: batches for the model's forward: tensors, tuples or lists (positional), dicts (keyword) or objects, or
            numpy arrays in place of tensors; items that it does not take, such as labels, are left out with a note (see
            :class:`ArgumentReader`). With ``loss`` any items that this takes.
        model: the model; its first parameter names the device.
        loss: calls the model on an item. It is started once per item and stopped at the call: the arguments of that
            call are the item's inputs.

    Raises:
        CalibrationError: there is no batch, one is empty, the data are one batch and no iterable of batches, reading
            fails, or the loss does not call the model. Where reading fails half-way, ``error.read`` holds the earlier
            items.
    """
    if isinstance(data, (Tensor, Mapping, np.ndarray, str)) or not hasattr(data, "__iter__"):
        loader = " or a DataLoader of it" if isinstance(data, Dataset) else ""
        raise CalibrationError(
            f"calibration is a {type(data).__name__}; give an iterable of batches, as [batch] for a single one{loader}"
        )
    device = next((p.device for p in parameters(model) if not p.is_meta), torch.device("cpu"))
    shade = None if loss is None else real_sandbox(model)
    reader = ArgumentReader(model, lambda inputs: runs_on(model, inputs))
    items: list[Any] = []
    batches: list[Batch] = []
    try:
        for item in data:
            moved: Any = map_tensors(item, lambda tensor: tensor.to(device))
            inputs = reader.read(moved) if loss is None or shade is None else _asked_for(loss, shade, moved)
            if inputs.is_empty:
                raise CalibrationError(_empty(len(batches), inputs), read=items)
            batches.append(Batch(moved, inputs))
            items.append(item)
    except CalibrationError:
        raise
    except Exception as error:  # user code: loader, loss, or the items
        more = f" (error.read holds the {len(items)} before it, for calibration=error.read)" if items else ""
        what = f"batch {len(batches)} of the calibration data could not be read{more}"
        raise CalibrationError(ended_by(what, error), read=items) from error
    if not batches:
        raise CalibrationError("the calibration data hold no batch; a generator that was used up yields none")
    return tuple(batches)


def _empty(number: int, inputs: Inputs) -> str:
    return (
        f"batch {number} of the calibration data is empty ({describe(inputs)}): leave it out; a loader may need "
        "drop_last=True, or a filter that keeps a sample at least"
    )


class _Called(BaseException):
    """Stops a loss where it calls the model; no Exception, which the loss might catch."""


def _asked_for(loss: Loss, shade: Sandbox, item: Any) -> Inputs:
    """The arguments with which a loss calls the model on an item, without making the call."""
    calls: list[Inputs] = []

    def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Inputs(args, kwargs))
        raise _Called

    hook = shade.model.register_forward_pre_hook(catch, prepend=True, with_kwargs=True)
    try:
        with shade.running():
            loss(shade.model, map_tensors(item, lambda tensor: tensor.detach().clone()))
    except _Called:
        pass
    except Exception as error:  # user code in the loss, before it calls the model
        what = "the loss, which gets the model and an item of the calibration data, raised before it called the model"
        raise CalibrationError(ended_by(what, error)) from error
    finally:
        hook.remove()
    if not calls:
        raise CalibrationError(
            "the loss did not call the model that it was given: loss(model, item) has to call its first argument, "
            "as in lambda model, item: F.cross_entropy(model(item[0]), item[1])"
        )
    return calls[0]


@contextmanager
def fitting(model: nn.Module, inputs: Inputs, number: int = 0) -> Generator[None]:
    """Raise errors of inputs that do not fit as errors of calibration data, with the batch and the likely cause."""
    try:
        yield
    except InputsError as error:
        which = f"batch {number}" if number else "the first batch"
        inner = error.__cause__ or error
        why = why_mismatched(model, inputs, "calibration", inner)
        why = why or "give what forward takes: a tensor, a tuple or list (positional), or a dict (keyword)"
        what = f"{which} of the calibration data ({describe(inputs)}) does not fit {type(model).__name__}.forward"
        raise CalibrationError(ended_by(f"{what}; {why}", inner)) from error


def notes_of(batches: Sequence[Batch]) -> list[str]:
    """Notes on items that were left out of the batches, or could be read in another way."""
    return list(dict.fromkeys(note for batch in batches for note in batch.inputs.notes))


def about_calibration(batches: tuple[Batch, ...]) -> list[str]:
    """Notes on the data for the user."""
    num_samples = sum(batch.num_samples for batch in batches)
    notes = notes_of(batches)
    if not batches:
        return notes
    if num_samples < FEW_SAMPLES:
        notes.append(f"{num_samples} calibration samples are few: another draw may rank the removals differently")
    if len(batches) == 1:
        notes.append("one calibration batch gives no intervals: pass several smaller ones")
    return notes
