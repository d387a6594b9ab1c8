"""Writes a model as an ONNX file, after a check of its outputs at several batch sizes."""

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
from layerprune.tables import brief
from layerprune.tensors import tensors_by_place
from layerprune.torch_internals import tree_map

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxFile:
    """An exported file, and its check.

    Attributes:
        num_nodes: number of operators in the graph.
        batch_sizes: batch sizes of the check; a single size for a fixed batch dimension.
        max_difference: to the model's output, relative to the output's largest magnitude.
    """

    path: Path
    num_nodes: int
    batch_sizes: tuple[int, ...]
    max_difference: float

    def __str__(self) -> str:
        at = " and ".join(map(str, self.batch_sizes)) or "the example's"
        return f"{self.path}: {self.num_nodes} nodes, within {self.max_difference:.1e} of the model at batch size {at}"

    def __repr__(self) -> str:
        return brief(self, f"{self.path.name}: {self.num_nodes} nodes, within {self.max_difference:.1e} of the model")


@locked
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    tolerance: float = 1e-3,
) -> OnnxFile:
    """Write a model as ONNX, after a comparison of onnxruntime's outputs with the model's.

    The function wraps :func:`torch.onnx.export` with ``dynamo=True``, in eval mode, with a dynamic batch dimension.

    Args:
        model: any model, pruned or not, on the CPU or a GPU; it is not changed.
        path: the file; it is written only if the check passes.
        example_inputs: a tensor, a tuple, a dict, or other arguments of ``forward``.
        dynamic_batch: whether the first dimension shared by the inputs is dynamic.
        tolerance: largest accepted difference, relative to the largest magnitude of each output.

    Returns:
        The file, its size in nodes, and the difference found.

    Raises:
        ExportError: a package is missing, torch cannot export the model, onnxruntime cannot run it, or the outputs
            differ.
        InputsError: the example inputs are invalid.
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
    except Exception as error:  # errors of the user's forward, of the exporter, and of converters
        hint = " A fixed batch may do: pass dynamic_batch=False." if shapes is not None else ""
        raise ExportError(f"torch cannot export {type(model).__name__} to ONNX: {_cause(error)}.{hint}") from error


def _dynamic_shapes(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Dynamic dimensions per argument: the first of each tensor with the batch size."""
    size = inputs.batch_size
    bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)

    def free(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
        return {0: "batch"} if batched else None

    return tree_map(free, dict(bound.arguments))


def _difference(shade: Sandbox, program: Any, inputs: Inputs, tolerance: float) -> float:
    name = type(shade.model).__name__
    expected = tensors_by_place(shade.forward(inputs))
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
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
