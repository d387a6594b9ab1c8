"""The errors of layerprune: each says what failed, where, and which call to make next."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

#: A message that is longer is read by nobody.
MOST_CHARACTERS = 300


def ended_by(text: str, error: BaseException) -> str:
    """End a message with the error behind it, its type and first line, within :data:`MOST_CHARACTERS` in all."""
    lines = str(error).strip().splitlines()
    inner = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    inner = _cut(inner, max(MOST_CHARACTERS - len(text) - 2, MOST_CHARACTERS // 3))
    return f"{_cut(text, MOST_CHARACTERS - len(inner) - 2)}: {inner}"


def short(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


PACKAGE_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep


class LayerPruneError(Exception):
    """The root of every error that this library raises on purpose."""


class UnsupportedModelError(LayerPruneError):
    """The model cannot be pruned as it is: scripted, lazy, or without a transform."""


class ArgumentError(LayerPruneError, TypeError):
    """An argument is of a type that says nothing here; the message says what is taken."""


class InputsError(LayerPruneError):
    """No example inputs fit the model, or the given ones do not."""


class CaptureError(LayerPruneError):
    """The model's forward could not be recorded."""


class GraphError(LayerPruneError):
    """A layer graph contradicts itself; the message names the layers and values."""


class OpClaimError(LayerPruneError):
    """What ``register_op`` was told of an op does not hold where a model calls it, or cannot be checked there."""


class CostError(LayerPruneError):
    """A model's cost could not be measured; the message says which and why."""


class BudgetError(LayerPruneError, ValueError):
    """A budget is outside its range."""


class UnknownNameError(LayerPruneError, KeyError):
    """A group, layer or pattern names nothing in the model."""

    def __str__(self) -> str:
        # KeyError prints its argument's repr, which would show the message with escapes.
        return str(self.args[0]) if self.args else ""


class CriticalGroupError(LayerPruneError):
    """A group was asked to go that no proven removal takes out."""


class PlanError(LayerPruneError):
    """A plan is malformed, or belongs to another model."""


class SurgeryError(LayerPruneError):
    """An edit does not fit the model; the model is as it was."""


class CheckpointError(LayerPruneError):
    """A pruned model could not be saved or loaded; the message names the file, what was expected and what found."""


class SourceError(LayerPruneError):
    """A model could not be built from what the command line named."""


class DroppedTensorError(LayerPruneError):
    """A forward asked a dropped tensor for something that only a real tensor has."""


class RemovedPartError(DroppedTensorError, AttributeError):
    """A host asked a removed module's stand-in for an attribute that went with the module."""


class CalibrationError(LayerPruneError):
    """Calibration data are empty, do not fit the model or the loss, or could not be read.

    Attributes:
        read: the items before the one that failed, for another try with these alone.
    """

    def __init__(self, message: str, *, read: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.read = list(read)


class NotFiniteError(CalibrationError):
    """The model makes NaN or infinite values of the calibration data; the message names the batch and the layer."""


class RepairError(LayerPruneError, ValueError):
    """A repair was asked for that there is none of."""


class DistillationError(LayerPruneError, ValueError):
    """A pruned model could not be trained: settings, models, checkpoint or data do not fit; it is as it was."""


class FidelityError(LayerPruneError):
    """Two models could not be compared; the message says on which batch, and why."""


class ExportError(LayerPruneError):
    """A model could not be exported, or what was exported does something else; nothing was written."""


class LayerPruneWarning(UserWarning):
    """The root of every warning of this library."""


class ShortfallWarning(LayerPruneWarning):
    """Nothing, or less than half of what a cap allows, was removed; the message says why, and what to do."""


def warn(message: str, category: type[LayerPruneWarning]) -> None:
    """Warn at the line of the user's code that called the library."""
    level, frame = 1, sys._getframe(0)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE_FOLDER):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
