"""``layerprune env``: versions of all that takes part, for a report of a problem."""

from __future__ import annotations

import typer

from layerprune.cli.console import print_json, working
from layerprune.cli.options import JsonOption


def env(as_json: JsonOption = False) -> None:
    """Print the versions of layerprune, Python, torch and the packages that it works with, and the machine.

    Paste it into a report of a problem. With --json: an object of the same names.
    """
    with working(as_json=as_json):
        from layerprune.environment import describe_environment

        found = describe_environment()
    if as_json:
        print_json(found)
        return
    width = max(map(len, found))
    for name, value in found.items():
        typer.echo(f"{name.ljust(width)}  {'not installed' if value is None else value}")
