"""``layerprune prune``: prunes a model within a budget, and saves it in a folder."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from layerprune.cli.console import check_out, echo_notes, files_in, print_json, print_table, working
from layerprune.cli.models import pruner_of
from layerprune.cli.options import (
    BudgetOptions,
    CalibrationOptions,
    JsonOption,
    ModelArgument,
    NewFolder,
    PrunerOptions,
    Repair,
    SourceOptions,
    grouped,
)
from layerprune.errors import BudgetError, ShortfallWarning


@grouped
def prune(
    model: ModelArgument,
    source: SourceOptions,
    budgets: BudgetOptions,
    options: PrunerOptions,
    data: CalibrationOptions,
    out: NewFolder,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Carry out this plan, as `plan --save` wrote it, in place of a budget."),
    ] = None,
    repair: Annotated[
        Repair, typer.Option(help="Of what is left, with --calibration: closed form, biases only, or none.")
    ] = "auto",
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Save the model where nothing can go, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prune MODEL within a budget, or of what never runs, and save it in DIR, where layerprune.load_pruned finds it.

    Where only whole layers left a transformers model, as with --granularity block, transformers loads DIR, too: config,
    weights, generation config and the tokenizer of MODEL are in it.

    With --calibration what is left is repaired in closed form. With --json: an object of `folder`, `files`, `plan` (as
    in plan.json), `repair` (null without) and `notes`. Where nothing can be removed, nothing is written, and the exit
    code is 1.
    """
    if (plan is None) == (not budgets.arguments):
        said = "say how much may go: a budget, as --reduction 0.3, or --group, or --unused; or a plan, and nothing else"
        raise typer.BadParameter(said, param_hint="--reduction")
    folder = check_out(out)
    with working(as_json=as_json):
        from layerprune.checkpoint import save_as_it_came
        from layerprune.plan import PruningPlan
        from layerprune.sources import source_of

        given = None if plan is None else PruningPlan.load(plan)
        pruner = pruner_of(model, source, options, data)
        chosen = pruner.plan(**budgets.arguments) if given is None else given
        if not chosen.removals and not allow_empty:
            raise BudgetError(f"{chosen.shortfall}. Nothing is written; --allow-empty writes the model as it is")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortfallWarning)  # printed below, with the notes
            pruner.prune(plan=chosen, repair=None if repair == "none" else repair)
        save_as_it_came(pruner.model, folder, source=source_of(model).origin)
        notes = [*(pruner.notes if plan is None else ()), *([chosen.shortfall] if chosen.shortfall else ())]
    echo_notes(notes[: len(notes) - bool(chosen.shortfall)])
    if chosen.shortfall:
        typer.echo(f"warning: {chosen.shortfall}", err=True)
    if pruner.repair_report is not None:
        typer.echo(str(pruner.repair_report), err=True)
    if as_json:
        repaired = None if pruner.repair_report is None else asdict(pruner.repair_report)
        record = {"plan": chosen.model_dump(mode="json"), "repair": repaired, "notes": notes}
        print_json({"folder": str(folder), "files": files_in(folder), **record})
        return
    print_table(chosen)
    typer.echo(f"Written to {folder}: {', '.join(files_in(folder))}")
