"""Standard output, standard error and exit codes of the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from layerprune.errors import LayerPruneError

if TYPE_CHECKING:
    from layerprune.plan import PruningPlan
    from layerprune.pruner import UniversalLayerPruner


def claim_stdout() -> None:
    """Reserve standard output: output of compiled code (scipy's solver prints) goes to standard error."""
    with suppress(OSError, ValueError):  # closed or replaced streams cannot be duplicated
        own = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sys.stdout = open(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)  # noqa: SIM115


@contextmanager
def working() -> Generator[None]:
    """Redirect standard output, and turn an error of the library into a message and exit code 1."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except LayerPruneError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be written, before minutes of work."""
    target = out.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise typer.BadParameter(f"{out} is not an empty folder; name a new or an empty one", param_hint="--out")
    parent = next(parent for parent in target.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise typer.BadParameter(f"{out} cannot be written: {parent} is no folder of yours", param_hint="--out")


def echo_notes(pruner: UniversalLayerPruner) -> None:
    """Print the pruner's notes to standard error."""
    for note in pruner.notes:
        typer.echo(f"note: {note}", err=True)


def print_table(chosen: PruningPlan) -> None:
    """Print the removals, the parameters before and after, and figures of other budgets."""
    from rich.console import Console

    Console().print(chosen)
