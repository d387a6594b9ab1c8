"""``layerprune plan``: groups, and removals within a budget."""

from __future__ import annotations

from typing import Any

import typer

from layerprune.cli.console import echo_notes, print_table, working
from layerprune.cli.models import pruner_of
from layerprune.cli.options import (
    CalibrationOption,
    FullOption,
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


@takes_budgets
def plan(
    model: ModelArgument,
    budgets: dict[str, Any],
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
    """Show which layers of MODEL can go, and why the others cannot; with a budget or --unused, also what would.

    With --json and a budget, the output is the plan that `prune` would carry out; without a budget, the groups.
    """
    from layerprune.report import groups_as_json, terminal_width

    width = terminal_width()  # before standard output is redirected
    with working():
        pruner = pruner_of(model, granularity, protect, protect_io, input_shape, pretrained, calibration, kind)
        chosen = pruner.plan(**budgets, strategy=strategy) if budgets else None
        text = "" if as_json else pruner.render_plan(full=full, width=width)
    if as_json:
        echo_notes(pruner)
        typer.echo(groups_as_json(pruner.groups, pruner.notes) if chosen is None else chosen.to_json())
        return
    typer.echo(text)
    if chosen is not None:
        print_table(chosen)
