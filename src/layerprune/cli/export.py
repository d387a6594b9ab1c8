"""``layerprune export``: writes a model in the form of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from layerprune.cli.console import check_file, print_json, working
from layerprune.cli.models import model_of, other_of
from layerprune.cli.options import JsonOption, ModelArgument, ShapeOption, SourceOptions, grouped, parsed_shape

Form = Literal["onnx", "torch-export"]


@grouped
def export(
    model: ModelArgument,
    source: SourceOptions,
    to: Annotated[Form, typer.Option(help="The form: an ONNX file, or a program of torch.export.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file; an existing one is replaced.")],
    folder: Annotated[
        str | None,
        typer.Argument(metavar="DIR", help="What `prune` or `distill` wrote of MODEL; MODEL itself if not given."),
    ] = None,
    input_shape: ShapeOption = None,
    fixed_batch: Annotated[
        bool, typer.Option("--fixed-batch", help="Allow the batch size of the example only.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference to the model, relative to its largest output.")
    ] = 1e-3,
    as_json: JsonOption = False,
) -> None:
    """Write MODEL, or what was left of it in DIR, as a file of another runtime.

    The file is run and compared with the model first, and written only where both agree. With --json: an object of
    `path`, `form`, `batch_sizes`, `max_difference` and `num_nodes`.
    """
    check_file(out)
    with working(as_json=as_json):
        import torch

        from layerprune.capture import record_first
        from layerprune.export import export_onnx, export_program
        from layerprune.modules import unwrap

        original = model_of(model, source)
        left = original if folder is None else other_of(folder, original, source)
        shape = parsed_shape(input_shape)
        inputs = record_first(unwrap(original), None if shape is None else torch.randn(shape), None)[0]
        write = export_onnx if to == "onnx" else export_program
        written = write(left, out, inputs, dynamic_batch=not fixed_batch, tolerance=tolerance)
    if as_json:
        record = {"batch_sizes": written.batch_sizes, "max_difference": written.max_difference}
        print_json({"path": str(out), "form": to, **record, "num_nodes": written.num_nodes})
        return
    typer.echo(str(written))
