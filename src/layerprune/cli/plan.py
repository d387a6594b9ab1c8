"""``layerprune plan``: groups, and removals within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerprune.cli.console import check_file, echo_notes, print_json, print_table, working
from layerprune.cli.models import pruner_of
from layerprune.cli.options import (
    BudgetOptions,
    CalibrationOptions,
    FullOption,
    JsonOption,
    ModelArgument,
    PrunerOptions,
    SourceOptions,
    grouped,
)


@grouped
def plan(
    model: ModelArgument,
    source: SourceOptions,
    budgets: BudgetOptions,
    options: PrunerOptions,
    data: CalibrationOptions,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan to a JSON file, for `prune --plan FILE`.")
    ] = None,
    full: FullOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show which layers of MODEL can go, and why the others cannot; with a budget or --unused, also what would.

    With --json: an object of `model`, `num_params`, `groups`, `notes`, `impact_unit` and `plan`, null without a budget.
    """
    if save is not None:
        if not budgets.arguments:
            raise typer.BadParameter("say how much may go, as --reduction 0.3", param_hint="--save")
        check_file(save, "--save")
    from layerprune.report import PLAN_COLOURS, groups_as_json, terminal_width
    from layerprune.tables import print_coloured

    width = terminal_width()  # before standard output is redirected
    with working(as_json=as_json):
        import json

        pruner = pruner_of(model, source, options, data)
        chosen = pruner.plan(**budgets.arguments) if budgets.arguments else None
        text = "" if as_json else pruner.render_plan(full=full, width=width)
        if save is not None and chosen is not None:
            chosen.save(save)
        groups = json.loads(groups_as_json(pruner.groups, pruner.notes))
    if as_json:
        echo_notes(pruner.notes)
        print_json(
            {
                "model": type(pruner.model).__name__,
                "num_params": pruner.graph.num_params,
                **groups,
                "impact_unit": pruner.impact_unit,
                "plan": None if chosen is None else chosen.model_dump(mode="json"),
            }
        )
        return
    print_coloured(text, PLAN_COLOURS)
    if chosen is not None:
        print_table(chosen)
    if save is not None:
        typer.echo(f"Written to {save}")
