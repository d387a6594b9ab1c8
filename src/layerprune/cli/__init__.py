"""Command line: ``layerprune plan``, ``prune``, ``distill`` and ``verify``.

Slow imports (torch, rich's tables) happen when a command runs, so that ``--help`` answers at once. Standard output
holds the result only; output of the model's own code goes to standard error.
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
    """Run the command line; exit code 0 for success, 1 for an error of the library, 2 for a wrong call."""
    claim_stdout()
    app()
