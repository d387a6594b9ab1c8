"""``layerprune inspect``: what a model is made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from layerprune.cli.console import print_json, working
from layerprune.cli.options import GranularityOption, JsonOption, ModelArgument, ShapeOption, parsed_shape

if TYPE_CHECKING:
    from layerprune.inspection import Inspection


def inspect(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    granularity: GranularityOption = "group",
    as_json: JsonOption = False,
) -> None:
    """Show what MODEL is made of: size, kinds of layers, repeated blocks, and how much of it may go.

    Nothing is measured, and no weights are loaded where the model can be built without them: `plan` says what a removal
    costs. With --json: an object of `model`, `num_params`, `macs`, `kinds`, `blocks`, `verdicts`, `refusals` and more.
    """
    from layerprune.tables import terminal_width

    width = terminal_width()  # before standard output is redirected
    shape = parsed_shape(input_shape)
    with working(as_json=as_json):
        found = _inspected(model, shape, granularity)
    if as_json:
        print_json(asdict(found))
        return
    from layerprune.inspection import inspection_text

    typer.echo(inspection_text(found, width=width))


def _inspected(spec: str, shape: tuple[int, ...] | None, granularity: str) -> Inspection:
    """Inspect without values first; a model whose code needs them is built with its weights."""
    import torch

    from layerprune.errors import SourceError
    from layerprune.inspection import inspect_model
    from layerprune.sources import load_model, load_skeleton

    try:
        skeleton = load_skeleton(spec)
        place = next((parameter.device for parameter in skeleton.parameters()), None)
        inputs = None if shape is None else torch.randn(shape, device=place)
        return inspect_model(skeleton, inputs, granularity=granularity)
    except SourceError:
        raise
    except Exception:  # the code of a model may need values in any way
        torch.manual_seed(0)
        inputs = None if shape is None else torch.randn(shape)
        return inspect_model(load_model(spec), inputs, granularity=granularity)
