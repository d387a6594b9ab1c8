"""``layerprune prune``: prunes a model within a budget, and saves it in a folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from layerprune.cli.console import check_out, echo_notes, print_table, working
from layerprune.cli.models import origin_of, pruner_of
from layerprune.cli.options import (
    CalibrationOption,
    GranularityOption,
    JsonOption,
    KindOption,
    ModelArgument,
    PretrainedOption,
    ProtectIoOption,
    ProtectOption,
    ShapeOption,
    StrategyOption,
    takes_budgets,
)
from layerprune.errors import BudgetError, ShortfallWarning


@takes_budgets
def prune(
    model: ModelArgument,
    budgets: dict[str, Any],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder for the result.")],
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Save the model where nothing can go, too.")
    ] = False,
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
    """Prune MODEL within a budget, or of what never runs, and save it in DIR, where layerprune.load_pruned finds it.

    Where only whole layers left a transformers model, as with --granularity block, transformers loads DIR, too: config,
    weights, generation config and the tokenizer of MODEL are in it.

    With --calibration what is left is repaired in closed form. With --json, the output is the plan that was carried
    out, as in plan.json. Where nothing can be removed, nothing is written, and the exit code is 1.
    """
    if not budgets:
        said = "say how much may go: a budget, as --reduction 0.3, or --unused"
        raise typer.BadParameter(said, param_hint="--reduction")
    check_out(out)
    with working():
        from layerprune.checkpoint import save_as_it_came

        pruner = pruner_of(model, granularity, protect, protect_io, input_shape, pretrained, calibration, kind)
        chosen = pruner.plan(**budgets, strategy=strategy)
        if not chosen.removals and not allow_empty:
            raise BudgetError(f"{chosen.shortfall}. Nothing is written; --allow-empty writes the model as it is")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortfallWarning)  # printed below, with the notes
            pruner.prune(plan=chosen)
        save_as_it_came(pruner.model, out, source=origin_of(model))
    echo_notes(pruner)
    if chosen.shortfall:
        typer.echo(f"warning: {chosen.shortfall}", err=True)
    if pruner.repair_report is not None:
        typer.echo(str(pruner.repair_report), err=True)
    if as_json:
        typer.echo(chosen.to_json())
        return
    print_table(chosen)
    typer.echo(f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
