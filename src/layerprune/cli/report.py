"""``layerprune report``: writes one HTML page about a model and its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerprune.cli.console import check_file, print_json, working
from layerprune.cli.models import pruner_of
from layerprune.cli.options import (
    BudgetOptions,
    CalibrationOptions,
    JsonOption,
    PrunerOptions,
    SourceOptions,
    grouped,
)


@grouped
def report(
    subject: Annotated[
        str, typer.Argument(metavar="MODEL|DIR", help="A model as for `plan`; or what `prune` wrote, or a plan's file.")
    ],
    source: SourceOptions,
    budgets: BudgetOptions,
    options: PrunerOptions,
    data: CalibrationOptions,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The page; an existing one is replaced.")
    ] = Path("report.html"),
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Show this plan, in place of a budget.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a report as one HTML file, which needs no network: what can go, a picture of the network, the frontier.

    Of a MODEL it shows what may go, with a budget also the plan; of a DIR or a plan's file the plan, without its model.
    With --json: an object of `path` and `bytes`.
    """
    check_file(out)
    given = Path(subject)
    with working(as_json=as_json):
        if ":" not in subject or given.exists():
            from layerprune.overview import report_folder

            written = report_folder(given, out)
        else:
            pruner = pruner_of(subject, source, options, data)
            chosen = pruner.plan(**budgets.arguments) if budgets.arguments else None
            written = pruner.report(out, chosen if plan is None else plan, origin=subject)
    size = written.stat().st_size
    if as_json:
        print_json({"path": str(written), "bytes": size})
        return
    typer.echo(f"Written to {written}: {size / 1000:,.0f} kB")
