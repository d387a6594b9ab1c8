"""Writes a model as a program of ``torch.export``, after a check of its outputs at several batch sizes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerprune.capture import Sandbox, real_sandbox
from layerprune.environment import locked
from layerprune.errors import ExportError
from layerprune.export.check import batches_to_check, cause, checked_difference, dynamic_shapes, without_torchs_warnings
from layerprune.export.exported_file import ExportedFile
from layerprune.inputs import Inputs, as_inputs
from layerprune.modules import unwrap
from layerprune.tensors import tensors_by_place


@locked
def export_program(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    tolerance: float = 1e-3,
) -> ExportedFile:
    """Write a model as a program of ``torch.export``, after a comparison of its outputs with the model's.

    Args:
        model: any model, pruned or not; it is not changed.
        path: the file, as ``model.pt2``; it is replaced only if the check passes.
        example_inputs: a tensor, a tuple, a dict, or other arguments of ``forward``.
        dynamic_batch: whether the first dimension shared by the inputs is dynamic.
        tolerance: largest accepted difference, relative to the largest magnitude of each output.

    Returns:
        The file, its size in nodes, and the difference found.

    Raises:
        ExportError: torch cannot export the model, the outputs differ, or the file cannot be written.
        InputsError: the example inputs are invalid.
    """
    inputs = as_inputs(example_inputs)
    shade = real_sandbox(unwrap(model))
    batches = batches_to_check(type(shade.model).__name__, inputs, dynamic_batch)
    with shade.running(), without_torchs_warnings():
        batch = torch.export.Dim("batch")
        shapes = dynamic_shapes(shade.model, inputs, batch) if dynamic_batch else None
        program = _program(shade.model, shade.adapt(batches[0]), shapes)
    difference = max(_difference(shade, program, batch, tolerance) for batch in batches)
    _save(program, Path(path))
    sizes = tuple(batch.batch_size for batch in batches if batch.batch_size is not None)
    operators = [node for node in program.graph.nodes if node.op == "call_function"]
    return ExportedFile(Path(path), len(operators), sizes, difference)


def _program(model: nn.Module, inputs: Inputs, shapes: dict[str, Any] | None) -> Any:
    try:
        program = torch.export.export(model, inputs.args, kwargs=dict(inputs.kwargs), dynamic_shapes=shapes)
        return program.run_decompositions()  # drops what only fed removed layers
    except Exception as error:  # errors of the user's forward, and of the exporter
        hint = " A fixed batch may do: pass dynamic_batch=False." if shapes is not None else ""
        raise ExportError(f"torch cannot export {type(model).__name__}: {cause(error)}.{hint}") from error


def _difference(shade: Sandbox, program: Any, inputs: Inputs, tolerance: float) -> float:
    name = type(shade.model).__name__
    expected = tensors_by_place(shade.forward(inputs))
    try:
        found = tensors_by_place(program.module()(*inputs.args, **inputs.kwargs))
    except Exception as error:  # a guard of the program, or an operator
        size = inputs.batch_size
        raise ExportError(
            f"the exported program of {name} does not run at batch size {size}: {cause(error)}; nothing was written"
        ) from error
    return checked_difference(f"the exported program of {name}", found, expected, inputs.batch_size, tolerance)


def _save(program: Any, path: Path) -> None:
    """Write the file whole or not at all."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}.pt2")
    try:
        torch.export.save(program, beside)
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer of archives raises the latter
        raise ExportError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
