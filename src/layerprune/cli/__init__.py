"""The library for the shell: ``layerprune plan``, ``prune``, ``distill`` and ``verify``.

What is slow to import (torch, rich's tables) is imported when a command runs, so that ``--help`` answers at once.
Standard output holds the result and nothing else; whatever the model's own code prints goes to standard error.
"""

from __future__ import annotations

from typing import Annotated

import typer

from layerprune.cli.console import claim_stdout
from layerprune.cli.distill import distill
from layerprune.cli.plan import plan
from layerprune.cli.prune import prune
from layerprune.cli.verify import verify

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"layerprune {version('layerprune')}")
        raise typer.Exit


@app.callback()
def _program(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Remove whole layers from a PyTorch model."""


for command in (plan, prune, distill, verify):
    app.command()(command)


def main() -> None:
    """Run the command line; exit with 0 for done, 1 for a refusal of the library, 2 for a wrong call."""
    claim_stdout()
    app()
