"""A forward in a sandbox, for measurements: on fake tensors, or on real tensors where fake ones fail."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

from torch import nn
from torch.overrides import BaseTorchFunctionMode

from layerprune.capture import Sandbox, fake_sandbox, is_about_fakes, real_sandbox
from layerprune.errors import CostError, short
from layerprune.inputs import Inputs
from layerprune.modules import buffers, parameters

_T = TypeVar("_T")


def on_sandbox(model: nn.Module, inputs: Inputs, measure: Callable[[Sandbox, Inputs], _T]) -> _T:
    """Measure in a sandbox of a model; the model is not changed.

    Where fake tensors fail, ``measure`` is called again with a new sandbox: first with fake tensors whose integers have
    values, then with real tensors.

    Raises:
        CostError: the forward raises on real tensors, or needs them on the meta device.
    """
    try:
        return measure(*_fresh(fake_sandbox(model), inputs))
    except Exception as error:  # the user's own forward
        failure = error
    if is_about_fakes(failure):
        try:
            return measure(*_fresh(fake_sandbox(model, integers=True), inputs))
        except Exception as error:
            failure = error
    name = type(model).__name__
    if any(tensor.is_meta for tensor in chain(parameters(model), buffers(model), inputs.tensors())):
        raise CostError(
            f"{name}.forward does not run on fake tensors ({short(failure)}), and the meta device has no values: "
            "load the model to the CPU or a GPU first"
        ) from failure
    try:
        return measure(*_fresh(real_sandbox(model), inputs))
    except Exception as error:
        raise CostError(f"{name}.forward raised on the inputs ({inputs!r}): {short(error)}") from error


def run(shade: Sandbox, inputs: Inputs) -> Any:
    """Run the forward of a running sandbox, on adapted inputs.

    Fused fast paths are off: on fake tensors they would run on zeros, and hide their operations.
    """
    with BaseTorchFunctionMode():
        return shade.model(*inputs.args, **inputs.kwargs)


def _fresh(shade: Sandbox, inputs: Inputs) -> tuple[Sandbox, Inputs]:
    return shade, shade.adapt(inputs)
