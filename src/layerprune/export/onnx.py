"""Writes a model as an ONNX file and checks the file's outputs at several batch sizes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture import Sandbox, real_sandbox
from layerprune.environment import how_to_install, locked
from layerprune.errors import ExportError
from layerprune.inputs import Inputs, as_inputs
from layerprune.modules import unwrap
from layerprune.tensors import tensors_by_place
from layerprune.torch_internals import tree_map

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxFile:
    """What was written, and how it was checked.

    Attributes:
        path: the file.
        num_nodes: operators in its graph.
        batch_sizes: at which it was run; one where the batch dimension is fixed.
        max_difference: the largest difference to the model's output, relative to the largest number in that.
    """

    path: Path
    num_nodes: int
    batch_sizes: tuple[int, ...]
    max_difference: float

    def __str__(self) -> str:
        at = " and ".join(map(str, self.batch_sizes)) or "the example's"
        return f"{self.path}: {self.num_nodes} nodes, within {self.max_difference:.1e} of the model at batch size {at}"


@locked
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    tolerance: float = 1e-3,
) -> OnnxFile:
    """Write a model as ONNX, after onnxruntime has run it and returned what the model returns.

    A thin wrapper of :func:`torch.onnx.export` with ``dynamo=True``, for pruned models and any others: in eval mode,
    with a free batch dimension. Neutral leftovers of surgery are no part of the graph.

    Args:
        model: the model, on the CPU or a GPU; it stays as it is.
        path: the file to write; nothing is written unless the check passes.
        example_inputs: a tensor, a tuple, a dict, or what ``forward`` takes.
        dynamic_batch: let the first dimension that the inputs share be any number.
        tolerance: how far the outputs may be from the model's, relative to the largest number in each.

    Raises:
        ExportError: onnx, onnxscript or onnxruntime is missing, torch cannot export the model, onnxruntime cannot run
            what it makes of it, or the outputs differ.
        InputsError: the example inputs are none.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX export needs {', '.join(missing)}; run: {how_to_install(*missing)}")
    inputs = as_inputs(example_inputs)
    shade = real_sandbox(unwrap(model))
    name = type(shade.model).__name__
    batches = [inputs]
    if dynamic_batch:
        batches = [repeated for times in (2, 3) if (repeated := inputs.repeat(times)) is not None]
        if not batches:
            raise ExportError(f"the inputs of {name} share no batch dimension; pass dynamic_batch=False")
    with shade.running():
        shapes = _dynamic_shapes(shade.model, inputs) if dynamic_batch else None
        program = _program(shade.model, shade.adapt(batches[0]), shapes)
    difference = max(_difference(shade, program, batch, tolerance) for batch in batches)
    program.save(path)
    sizes = tuple(batch.batch_size for batch in batches if batch.batch_size is not None)
    return OnnxFile(Path(path), len(program.model.graph), sizes, difference)


def _program(model: nn.Module, inputs: Inputs, shapes: dict[str, Any] | None) -> Any:
    try:
        return torch.onnx.export(
            model, inputs.args, kwargs=dict(inputs.kwargs), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    except Exception as error:  # the exporter runs the user's forward, and raises whatever that or a converter raises
        hint = " A fixed batch may do: pass dynamic_batch=False." if shapes is not None else ""
        raise ExportError(f"torch cannot export {type(model).__name__} to ONNX: {_cause(error)}.{hint}") from error


def _dynamic_shapes(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Per argument of the forward, the dimensions that are free: the first one of each tensor that has the batch's."""
    size = inputs.batch_size
    bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)

    def free(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
        return {0: "batch"} if batched else None

    return tree_map(free, dict(bound.arguments))


def _difference(shade: Sandbox, program: Any, inputs: Inputs, tolerance: float) -> float:
    """The largest relative difference of what the program returns to what the model does."""
    own, name = shade.adapt(inputs), type(shade.model).__name__
    with shade.running():
        expected = tensors_by_place(shade.model(*own.args, **own.kwargs))
    try:
        found: Sequence[Tensor] = program(*inputs.args, **inputs.kwargs)
    except Exception as error:  # onnxruntime's exceptions have no class in common
        raise ExportError(
            f"onnxruntime cannot run the ONNX graph of {name} at batch size {inputs.batch_size}: {_cause(error)}; "
            "nothing was written"
        ) from error
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in expected]:
        shapes = [["×".join(map(str, t.shape)) for t in some] for some in (found, expected)]
        raise ExportError(f"the ONNX graph of {name} returns tensors of {shapes[0]}, the model {shapes[1]}")
    worst = max((_apart(a, b.cpu()) for a, b in zip(found, expected, strict=True)), default=0.0)
    if not worst <= tolerance:
        raise ExportError(
            f"the ONNX graph of {name} is off by {worst:.2g} of the largest number that the model "
            f"returns at batch size {inputs.batch_size}; nothing was written. A larger tolerance= accepts it"
        )
    return worst


def _apart(found: Tensor, expected: Tensor) -> float:
    if not found.numel():
        return 0.0
    one, other = found.double(), expected.double()
    scale = other.abs().max().clamp_min(1e-30)
    return float((one - other).abs().max() / scale)


def _cause(error: BaseException) -> str:
    """The first lines of the innermost error: the exporter wraps them in advice of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
