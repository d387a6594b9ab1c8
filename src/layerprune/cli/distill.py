"""``layerprune distill``: trains the model that ``prune`` saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerprune.cli.console import check_out, working
from layerprune.cli.models import model_of, origin_of
from layerprune.cli.options import ModelArgument, Precision, PretrainedOption


def distill(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `layerprune prune` wrote of MODEL.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE:NAME",
            help="Batches to learn from, without labels: an iterable in a Python file, or a function that returns one.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder for the result.")],
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:NAME", help="The same to choose the best weights by; if not given, every eighth batch."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of its own, from which the same call goes on.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 3,
    rate: Annotated[float, typer.Option(help="Learning rate at its peak.")] = 3e-4,
    lora_rank: Annotated[int, typer.Option(min=0, help="Train thin matrices of this rank instead of all weights.")] = 0,
    mixed_precision: Annotated[Precision, typer.Option(help="What forwards compute in.")] = "no",
    pretrained: PretrainedOption = False,
) -> None:
    """Train what `prune` has left of MODEL to do what MODEL does, and save it in --out.

    MODEL has to have the weights that it was pruned with. Where no weights are better than those in DIR, these are
    saved; the report says so.
    """
    check_out(out)
    with working():
        from layerprune.checkpoint import load_pruned, save_as_it_came
        from layerprune.cli.sources import load_data
        from layerprune.distillation import distill as train

        original = model_of(model, pretrained)
        pruned = load_pruned(folder, model=original)
        report = train(
            original,
            pruned,
            load_data(data),
            held_out=None if held_out is None else load_data(held_out),
            checkpoint=checkpoint,
            num_epochs=epochs,
            learning_rate=rate,
            lora_rank=lora_rank,
            mixed_precision=mixed_precision,
        )
        save_as_it_came(pruned, out, source=origin_of(model))
    typer.echo(str(report))
    typer.echo(f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
