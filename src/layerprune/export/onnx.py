"""Writes a model as an ONNX file, after a check of its outputs at several batch sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture import Sandbox, real_sandbox
from layerprune.environment import how_to_install, locked
from layerprune.errors import ExportError
from layerprune.export.check import batches_to_check, cause, checked_difference, dynamic_shapes, without_torchs_warnings
from layerprune.export.exported_file import ExportedFile
from layerprune.inputs import Inputs, as_inputs
from layerprune.modules import unwrap
from layerprune.tensors import tensors_by_place

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


@locked
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    tolerance: float = 1e-3,
) -> ExportedFile:
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
    batches = batches_to_check(name, inputs, dynamic_batch)
    with shade.running(), without_torchs_warnings():
        shapes = dynamic_shapes(shade.model, inputs) if dynamic_batch else None
        program = _program(shade.model, shade.adapt(batches[0]), shapes)
    difference = max(_difference(shade, program, batch, tolerance) for batch in batches)
    try:
        program.save(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from error
    sizes = tuple(batch.batch_size for batch in batches if batch.batch_size is not None)
    return ExportedFile(Path(path), len(program.model.graph), sizes, difference)


def _program(model: nn.Module, inputs: Inputs, shapes: dict[str, Any] | None) -> Any:
    try:
        return torch.onnx.export(
            model, inputs.args, kwargs=dict(inputs.kwargs), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    except Exception as error:  # errors of the user's forward, of the exporter, and of converters
        hint = " A fixed batch may do: pass dynamic_batch=False." if shapes is not None else ""
        raise ExportError(f"torch cannot export {type(model).__name__} to ONNX: {cause(error)}.{hint}") from error


def _difference(shade: Sandbox, program: Any, inputs: Inputs, tolerance: float) -> float:
    name = type(shade.model).__name__
    expected = tensors_by_place(shade.forward(inputs))
    try:
        found: Sequence[Tensor] = program(*inputs.args, **inputs.kwargs)
    except Exception as error:  # onnxruntime's exceptions have no class in common
        raise ExportError(
            f"onnxruntime cannot run the ONNX graph of {name} at batch size {inputs.batch_size}: {cause(error)}; "
            "nothing was written"
        ) from error
    return checked_difference(f"the ONNX graph of {name}", found, expected, inputs.batch_size, tolerance)
