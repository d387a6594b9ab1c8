"""``layerprune distill``: trains the model that ``prune`` saved."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from layerprune.cli.completion import complete_data
from layerprune.cli.console import check_out, files_in, print_json, working
from layerprune.cli.models import data_of, model_of
from layerprune.cli.options import (
    DATA,
    DataOptions,
    JsonOption,
    ModelArgument,
    NewFolder,
    Precision,
    SourceOptions,
    grouped,
)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Settings of the training: fields of the library's recipe."""

    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 3
    rate: Annotated[float, typer.Option(help="Learning rate at its peak.")] = 3e-4
    lora_rank: Annotated[int, typer.Option(min=0, help="Train thin matrices of this rank instead of all weights.")] = 0
    mixed_precision: Annotated[Precision, typer.Option(help="What forwards compute in.")] = "no"
    seed: Annotated[int, typer.Option(min=0, help="Of all random choices.")] = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of ``layerprune.distill``."""
        renamed = {"epochs": "num_epochs", "rate": "learning_rate"}
        return {renamed.get(name, name): value for name, value in asdict(self).items()}


@grouped
def distill(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `layerprune prune` wrote of MODEL.")],
    source: SourceOptions,
    data: DataOptions,
    training: TrainingOptions,
    out: NewFolder,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help=f"Data to choose the best weights by, every eighth batch if not given: {DATA}",
            show_default=False,
            autocompletion=complete_data,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of its own, from which the same call goes on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train what `prune` has left of MODEL to do what MODEL does, and save it in --out.

    MODEL has to have the weights that it was pruned with. Where no weights are better than those in DIR, these are
    saved; the report says so. Ctrl-C saves the best weights so far in --out, or with --checkpoint leaves them there.

    With --json: an object of `folder`, `files`, `before` and `after` (divergence of the output on held-out data, in
    `unit`), `kept` (whether weights changed), `num_steps`, `losses`, `notes` and more of the training.
    """
    written = check_out(out)
    progress = _Progress(written, checkpoint)
    with working(as_json=as_json, kept=progress.kept):
        from layerprune.checkpoint import load_pruned, save_as_it_came
        from layerprune.distillation import distill as train
        from layerprune.sources import source_of

        original = model_of(model, source)
        pruned = load_pruned(folder, model=original)
        batches = data_of(data.data, model, original, data)
        judging = None if held_out is None else data_of(held_out, model, original, data)
        progress.save = lambda: save_as_it_came(pruned, written, source=source_of(model).origin)
        report = train(
            original,
            pruned,
            batches,
            held_out=judging,
            checkpoint=checkpoint,
            **training.settings,
        )
        progress.save()
    if as_json:
        record = {"before": report.before, "after": report.after, "kept": report.kept, **asdict(report)}
        print_json({"folder": out, "files": files_in(written), **record})
        return
    typer.echo(str(report))
    typer.echo(f"Written to {out}: {', '.join(files_in(written))}")


class _Progress:
    """What a training has come to when it is interrupted."""

    def __init__(self, out: Path, checkpoint: Path | None) -> None:
        self.out = out
        self.checkpoint = checkpoint
        self.save: Any = None

    def kept(self) -> str:
        """Save the best weights so far, or name the checkpoint that has them; :func:`distill` has written them."""
        if self.save is None:
            return "nothing was written"
        if self.checkpoint is not None:
            if not (self.checkpoint / "training.json").is_file():
                return f"nothing was written to {self.out}, and nothing to {self.checkpoint} yet"
            return f"nothing was written to {self.out}; the same call goes on from {self.checkpoint}"
        self.save()
        return f"the best weights so far are in {self.out}; --checkpoint DIR lets the same call go on"
