"""A forward in a sandbox, for measurements: on fake tensors, or on real tensors where fake ones fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from layerprune.capture import Sandbox, ValuesNeededError, attempt, on_batch
from layerprune.errors import CostError, short
from layerprune.inputs import Inputs

_T = TypeVar("_T")


def on_sandbox(model: nn.Module, inputs: Inputs, measure: Callable[[Sandbox], _T]) -> _T:
    """Measure in a sandbox of a model, on fake tensors or, where these cannot go, on real ones; see :func:`attempt`.

    Args:
        model: any module, on any device, the meta device too; it is not touched.
        inputs: arguments that its forward takes.
        measure: runs the sandbox's forward. It is called again, on another sandbox, where it raises.

    Returns:
        What the first call to come through returned.

    Raises:
        CostError: the forward raises on real tensors, or needs them on the meta device.
    """
    with on_batch(model, inputs, "the inputs", CostError):
        try:
            return attempt(model, inputs, measure)[0]
        except ValuesNeededError as error:
            raise CostError(
                f"{type(model).__name__}.forward does not run on fake tensors ({short(error.failure)}), and the meta "
                "device has no values: load the model to the CPU or a GPU first"
            ) from error.failure
