"""The library for the shell: ``layerprune plan``, ``prune``, ``distill`` and ``verify``.

What is slow to import (torch, rich's tables) is imported when a command runs, so that ``--help`` answers at once.
Standard output holds the result and nothing else; whatever the model's own code prints goes to standard error.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from layerprune.errors import BudgetError, LayerPruneError, ShortfallWarning

if TYPE_CHECKING:
    from torch import nn

    from layerprune.plan import PruningPlan
    from layerprune.pruner import UniversalLayerPruner

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Granularity = Literal["group", "branch", "block"]
Kind = Literal["distribution", "values"]
Precision = Literal["no", "bf16", "fp16"]
Strategy = Literal["auto", "exact", "quadratic", "greedy", "evolution", "resampled", "repaired"]


def _check_reduction(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} is not between 0 and 1: give the share that may go, as 0.3")
    return value


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"layerprune {version('layerprune')}")
        raise typer.Exit


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:resnet50, timm:vit_small_patch16_224, hf:DIR_OR_ID, or path/to/file.py:factory.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
FullOption = Annotated[bool, typer.Option("--full", help="Show each group of repeated blocks, not one for all.")]
GranularityOption = Annotated[Granularity, typer.Option(help="What leaves together.")]
ProtectOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Keep layers whose dotted name matches; repeatable.", show_default=False),
]
ProtectIoOption = Annotated[
    bool, typer.Option(" /--no-protect-io", help="Let the first and last layers go too.", show_default=False)
]
ShapeOption = Annotated[
    str | None,
    typer.Option(metavar="SHAPE", help="Of the example input, as 1,3,224,224; inferred if not given."),
]
ReductionOption = Annotated[
    float | None,
    typer.Option(callback=_check_reduction, help="Budget: the largest share of parameters that may go."),
]
MacReductionOption = Annotated[
    float | None,
    typer.Option(callback=_check_reduction, help="Budget: the largest share of multiply-accumulates that may go."),
]
LatencyOption = Annotated[
    float | None, typer.Option(metavar="MS", help="Budget: milliseconds that one forward is to come down to.")
]
MemoryOption = Annotated[
    int | None, typer.Option(metavar="BYTES", help="Budget: bytes that weights and activations are to come down to.")
]
MaxImpactOption = Annotated[
    float | None, typer.Option(metavar="IMPACT", help="Budget: the largest impact of all removals together.")
]
SlackOption = Annotated[
    float,
    typer.Option(min=0, max=0.99, help="How far below what fits a plan may stay for less impact; 0 fills the budget."),
]
StrategyOption = Annotated[Strategy, typer.Option(help="What chooses within the budget.")]
PretrainedOption = Annotated[
    bool, typer.Option("--pretrained", help="Published weights for torchvision and timm, not random.")
]


CalibrationOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE:NAME",
        help="Batches to measure impacts on, and to repair by: an iterable in a Python file, or a function that "
        "returns one.",
        show_default=False,
    ),
]
KindOption = Annotated[
    Kind | None,
    typer.Option(help="How outputs are compared: as logits, or as numbers; told from the model if not given."),
]


@app.callback()
def _program(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Remove whole layers from a PyTorch model."""


@app.command()
def plan(
    model: ModelArgument,
    reduction: ReductionOption = None,
    mac_reduction: MacReductionOption = None,
    latency_ms: LatencyOption = None,
    memory_bytes: MemoryOption = None,
    max_impact: MaxImpactOption = None,
    slack: SlackOption = 0.1,
    strategy: StrategyOption = "auto",
    as_json: JsonOption = False,
    full: FullOption = False,
    granularity: GranularityOption = "group",
    protect: ProtectOption = None,
    protect_io: ProtectIoOption = True,
    input_shape: ShapeOption = None,
    calibration: CalibrationOption = None,
    kind: KindOption = None,
    pretrained: PretrainedOption = False,
) -> None:
    """Show which layers of MODEL can go, and why the others cannot; with a budget, also which of them would.

    With --json and a budget, the output is the plan that `prune` would carry out; without a budget, the groups.
    """
    from layerprune.report.groups_json import groups_as_json
    from layerprune.report.layout import terminal_width

    budgets = _budgets(reduction, mac_reduction, latency_ms, memory_bytes, max_impact)
    width = terminal_width()  # of the result, which standard output is not while we work
    with _working():
        pruner = _pruner_of(model, granularity, protect, protect_io, input_shape, pretrained, calibration, kind)
        chosen = pruner.plan(**budgets, slack=slack, strategy=strategy) if budgets else None
        text = "" if as_json else pruner.render_plan(full=full, width=width)
    if as_json:
        _echo_notes(pruner)
        typer.echo(groups_as_json(pruner.groups, pruner.notes) if chosen is None else chosen.to_json())
        return
    typer.echo(text)
    if chosen is not None:
        _print_table(chosen)


@app.command()
def prune(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder for the result.")],
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Save the model where nothing can go, too.")
    ] = False,
    reduction: ReductionOption = None,
    mac_reduction: MacReductionOption = None,
    latency_ms: LatencyOption = None,
    memory_bytes: MemoryOption = None,
    max_impact: MaxImpactOption = None,
    slack: SlackOption = 0.1,
    strategy: StrategyOption = "auto",
    as_json: JsonOption = False,
    granularity: GranularityOption = "group",
    protect: ProtectOption = None,
    protect_io: ProtectIoOption = True,
    input_shape: ShapeOption = None,
    calibration: CalibrationOption = None,
    kind: KindOption = None,
    pretrained: PretrainedOption = False,
) -> None:
    """Prune MODEL within a budget, and save it in DIR, where layerprune.load_pruned finds it.

    Where only whole layers left a transformers model, as with --granularity block, transformers loads DIR, too: config,
    weights, generation config and the tokenizer of MODEL are in it.

    With --calibration what is left is repaired in closed form. With --json, the output is the plan that was carried
    out, as in plan.json. Where nothing can be removed, nothing is written, and the exit code is 1.
    """
    budgets = _budgets(reduction, mac_reduction, latency_ms, memory_bytes, max_impact)
    if not budgets:
        raise typer.BadParameter("say how much may go: a budget, as --reduction 0.3", param_hint="--reduction")
    _check_out(out)
    with _working():
        from layerprune.checkpoint.vanilla import save_as_it_came

        pruner = _pruner_of(model, granularity, protect, protect_io, input_shape, pretrained, calibration, kind)
        chosen = pruner.plan(**budgets, slack=slack, strategy=strategy)
        if not chosen.removals and not allow_empty:
            raise BudgetError(f"{chosen.shortfall}. Nothing is written; --allow-empty writes the model as it is")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortfallWarning)  # said below, with the notes
            pruner.prune(plan=chosen)
        save_as_it_came(pruner.model, out, source=_origin(model))
    _echo_notes(pruner)
    if chosen.shortfall:
        typer.echo(f"warning: {chosen.shortfall}", err=True)
    if pruner.repair_report is not None:
        typer.echo(str(pruner.repair_report), err=True)
    if as_json:
        typer.echo(chosen.to_json())
        return
    _print_table(chosen)
    typer.echo(f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


@app.command()
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
    _check_out(out)
    with _working():
        from layerprune.checkpoint.load import load_pruned
        from layerprune.checkpoint.vanilla import save_as_it_came
        from layerprune.distillation.distilling import distill as train
        from layerprune.sources import load_data

        original = _model_of(model, pretrained)
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
        save_as_it_came(pruned, out, source=_origin(model))
    typer.echo(str(report))
    typer.echo(f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `layerprune prune` or save_pruned wrote.")],
) -> None:
    """Check that a saved model is complete, and bit for bit as it was written."""
    with _working():
        from layerprune.checkpoint.manifest import verify

        manifest = verify(folder)
    size = sum(record.size for record in manifest.files.values())
    typer.echo(f"{folder} is as it was written: {manifest.model}, {manifest.num_params:,} parameters, {size:,} bytes")


def main() -> None:
    """Run the command line; exit with 0 for done, 1 for a refusal of the library, 2 for a wrong call."""
    _claim_stdout()
    app()


def _claim_stdout() -> None:
    """Keep standard output to ourselves: what compiled code prints (scipy's solver does) goes to standard error."""
    with suppress(OSError, ValueError):  # a closed or replaced stream is nobody's to keep
        own = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sys.stdout = open(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)  # noqa: SIM115


@contextmanager
def _working() -> Generator[None]:
    """Keep standard output clean meanwhile, and turn a refusal of the library into a message and exit code 1."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except LayerPruneError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _check_out(out: Path) -> None:
    """Refuse a folder that cannot be written before minutes of work, not after."""
    target = out.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise typer.BadParameter(f"{out} is not an empty folder; name a new or an empty one", param_hint="--out")
    parent = next(parent for parent in target.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise typer.BadParameter(f"{out} cannot be written: {parent} is no folder of yours", param_hint="--out")


def _pruner_of(
    model: str,
    granularity: Granularity,
    protect: Iterable[str] | None,
    protect_io: bool,
    input_shape: str | None,
    pretrained: bool,
    calibration: str | None,
    kind: Kind | None,
) -> UniversalLayerPruner:
    """Build the model and capture it; random inputs are the same in every run."""
    example_inputs = None if input_shape is None else _parse_shape(input_shape)
    import torch

    from layerprune.pruner import UniversalLayerPruner
    from layerprune.sources import load_data

    return UniversalLayerPruner(
        _model_of(model, pretrained),
        calibration=None if calibration is None else load_data(calibration),
        example_inputs=None if example_inputs is None else torch.randn(example_inputs),
        protect=tuple(protect or ()),
        granularity=granularity,
        protect_io=protect_io,
        kind=kind,
    )


def _model_of(model: str, pretrained: bool) -> nn.Module:
    """Build the model; random weights are the same in every run."""
    import torch

    from layerprune.sources import load_model

    torch.manual_seed(0)
    return load_model(model, pretrained=pretrained)


def _origin(model: str) -> str | None:
    """The folder or the name on the hub that a transformers model comes from."""
    return model.removeprefix("hf:") if model.startswith("hf:") else None


def _budgets(
    reduction: float | None,
    mac_reduction: float | None,
    latency_ms: float | None,
    memory_bytes: int | None,
    max_impact: float | None,
) -> dict[str, Any]:
    """The budgets that were given, as :meth:`UniversalLayerPruner.plan` calls them."""
    named = {
        "max_param_reduction": reduction,
        "max_mac_reduction": mac_reduction,
        "target_latency_ms": latency_ms,
        "max_memory_bytes": memory_bytes,
        "max_impact": max_impact,
    }
    return {name: value for name, value in named.items() if value is not None}


def _parse_shape(text: str) -> tuple[int, ...]:
    """Read ``1,3,224,224``."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is not a shape; write it as 1,3,224,224", param_hint="--input-shape")
    return tuple(int(part) for part in parts)


def _echo_notes(pruner: UniversalLayerPruner) -> None:
    for note in pruner.notes:
        typer.echo(f"note: {note}", err=True)


def _print_table(chosen: PruningPlan) -> None:
    """Print what the plan removes, the parameters before and after, and what else a budget speaks of."""
    from rich.console import Console

    from layerprune.report.table import table_of
    from layerprune.report.text import figure_lines

    Console().print(table_of(chosen))
    for line in figure_lines(chosen):
        typer.echo(line)
