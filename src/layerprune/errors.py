"""The errors of layerprune: each names the failure, its place, and the next call to make."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

#: The longest message that users still read.
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
    """Base class of all errors of this library."""


class UnsupportedModelError(LayerPruneError):
    """The model cannot be pruned as it is: scripted, lazy, or without a transform."""


class ArgumentError(LayerPruneError, TypeError):
    """An argument has a wrong type or value; the message names the accepted ones."""


class InputsError(LayerPruneError):
    """No example inputs fit the model, or the given ones do not."""


class CaptureError(LayerPruneError):
    """The model's forward could not be recorded."""


class GraphError(LayerPruneError):
    """A layer graph contradicts itself; the message names the layers and values."""


class OpClaimError(LayerPruneError):
    """A claim of ``register_op`` does not hold where a model calls the op, or cannot be checked there."""


class CostError(LayerPruneError):
    """A model's cost could not be measured; the message names the cost and the reason."""


class BudgetError(LayerPruneError, ValueError):
    """A budget is outside its range."""


class UnknownNameError(LayerPruneError, KeyError):
    """A group, layer or pattern names nothing in the model."""

    def __str__(self) -> str:
        # KeyError prints its argument's repr, which would show the message with escapes.
        return str(self.args[0]) if self.args else ""


class CriticalGroupError(LayerPruneError):
    """No proven removal takes out a group that was named for removal."""


class PlanError(LayerPruneError):
    """A plan is malformed, or belongs to another model."""


class SurgeryError(LayerPruneError):
    """An edit does not fit the model; the model did not change."""


class CheckpointError(LayerPruneError):
    """A pruned model could not be saved or loaded; the message names the file, the expected and the found content."""


class SourceError(LayerPruneError):
    """A model named on the command line could not be built."""


class RecipeError(LayerPruneError, ValueError):
    """A recipe is malformed, or its output folder holds something else; the message names the field."""


class DroppedTensorError(LayerPruneError):
    """A forward used a dropped tensor as a real tensor."""


class RemovedPartError(DroppedTensorError, AttributeError):
    """A module read an attribute of a removed module from its stand-in."""


class CalibrationError(LayerPruneError):
    """Calibration data are empty, do not fit the model or the loss, or could not be read.

    Attributes:
        read: the items before the failed one, for another try with these alone.
    """

    def __init__(self, message: str, *, read: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.read = list(read)


class NotFiniteError(CalibrationError):
    """The model gives NaN or infinite values on the calibration data; the message names the batch and the layer."""


class RepairError(LayerPruneError, ValueError):
    """An argument of a repair is invalid, or the edits do not fit the model."""


class DistillationError(LayerPruneError, ValueError):
    """A pruned model could not be trained: settings, models, checkpoint or data do not fit; it did not change."""


class IntegrationError(LayerPruneError, ValueError):
    """A model cannot be pruned inside a training loop; the message says what stands in the way. Nothing changed."""


class FidelityError(LayerPruneError):
    """Two models could not be compared; the message names the batch and the reason."""


class ExportError(LayerPruneError):
    """A model could not be exported, or the exported model computes something else; no file was written."""


class ReportError(LayerPruneError):
    """A report cannot be written, or there is nothing to report on."""


class LayerPruneWarning(UserWarning):
    """Base class of all warnings of this library."""


class ShortfallWarning(LayerPruneWarning):
    """A plan removes nothing, or less than half of a cap; the message gives the reason and the next call."""


def warn(message: str, category: type[LayerPruneWarning]) -> None:
    """Warn at the line of the user's code that called the library."""
    level, frame = 1, sys._getframe(0)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE_FOLDER):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
