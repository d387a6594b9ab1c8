"""One forward of a shadow to measure on: on fake tensors, or on real ones where those cannot go."""

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
    """Measure on a shadow of a model, with inputs that it takes; the model is not touched.

    Args:
        model: any module, on any device, the meta device too.
        inputs: arguments that its forward takes.
        measure: runs the shadow's forward. It is called again, with another shadow, where fake tensors cannot go: first
            with one whose integers have values, then with one on real tensors.

    Returns:
        What the first call to come through returned.

    Raises:
        CostError: the forward raises, on real tensors as well, or needs these on the meta device.
    """
    try:
        return measure(*_fresh(fake_sandbox(model), inputs))
    except Exception as error:  # the user's own forward: anything may come
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
    """Run the forward of a shadow that is running, on inputs adapted to it.

    Modules take no fused fast paths: on fake tensors these would run for real, on zeros, and hide what they compute.
    """
    with BaseTorchFunctionMode():
        return shade.model(*inputs.args, **inputs.kwargs)


def _fresh(shade: Sandbox, inputs: Inputs) -> tuple[Sandbox, Inputs]:
    return shade, shade.adapt(inputs)
