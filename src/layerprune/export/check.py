"""What all exports share: the sizes that are free, and the comparison with the model before a file is written."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from layerprune.errors import ExportError
from layerprune.inputs import Inputs
from layerprune.torch_internals import tree_map


def batches_to_check(name: str, inputs: Inputs, dynamic_batch: bool) -> list[Inputs]:
    """The inputs to run: at two batch sizes where these are free.

    Raises:
        ExportError: the inputs share no batch dimension.
    """
    if not dynamic_batch:
        return [inputs]
    batches = [repeated for times in (2, 3) if (repeated := inputs.repeat(times)) is not None]
    if not batches:
        raise ExportError(f"the inputs of {name} share no batch dimension; pass dynamic_batch=False")
    return batches


def checked_difference(
    what: str, found: Sequence[Tensor], expected: Sequence[Tensor], size: int | None, tolerance: float
) -> float:
    """The largest difference of the exported model's outputs, relative to the largest magnitude of each output.

    Raises:
        ExportError: the shapes differ, or the difference is above the tolerance.
    """
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in expected]:
        shapes = [["×".join(map(str, t.shape)) for t in some] for some in (found, expected)]
        raise ExportError(f"{what} returns tensors of {shapes[0]}, the model {shapes[1]}")
    worst = max((apart(a, b.cpu()) for a, b in zip(found, expected, strict=True)), default=0.0)
    if not worst <= tolerance:
        raise ExportError(
            f"{what} is off by {worst:.2g} of the largest number that the model "
            f"returns at batch size {size}; nothing was written. A larger tolerance= accepts it"
        )
    return worst


@contextmanager
def without_torchs_warnings() -> Generator[None]:
    """Hide what torch warns of in its own code while it exports, which users can do nothing about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        yield


def dynamic_shapes(model: nn.Module, inputs: Inputs, batch: Any = "batch") -> dict[str, Any]:
    """Dynamic dimensions per argument: the first of each tensor with the batch size; ``batch`` stands for it."""
    size = inputs.batch_size
    bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)

    def free(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
        return {0: batch} if batched else None

    return tree_map(free, dict(bound.arguments))


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest magnitude of the expected one."""
    if not found.numel():
        return 0.0
    one, other = found.double(), expected.double()
    scale = other.abs().max().clamp_min(1e-30)
    return float((one - other).detach().abs().max() / scale)


def cause(error: BaseException) -> str:
    """Type and message of the first error of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
