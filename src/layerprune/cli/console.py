"""Standard output, standard error and exit codes of the commands."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from layerprune.errors import LayerPruneError, LayerPruneWarning

if TYPE_CHECKING:
    from layerprune.plan import PruningPlan

DONE, REFUSED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130


class Program(TyperGroup):
    """The program: with ``--json``, a wrong call is told as JSON, too."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run a command line; exits with one of the codes."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            return super().main(args, *more, **options)
        except SystemExit as ended:
            if ended.code == WRONG_CALL and "--json" in given:
                print_json(_error_record("wrong call; see the usage on standard error", "UsageError", WRONG_CALL))
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted: nothing was written", err=True)
            sys.exit(INTERRUPTED)


def claim_stdout() -> None:
    """Reserve standard output: what compiled code prints goes to standard error."""
    with suppress(OSError, ValueError):  # closed or replaced streams cannot be duplicated
        own = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sys.stdout = open(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)  # noqa: SIM115


@contextmanager
def working(*, as_json: bool = False, kept: Callable[[], str] = lambda: "nothing was written") -> Generator[None]:
    """Redirect standard output, and turn errors of the library and Ctrl-C into a message and an exit code.

    Args:
        as_json: whether the error is also printed as JSON on standard output.
        kept: says after Ctrl-C what the command has written so far.
    """
    try:
        with redirect_stdout(sys.stderr), _warnings_as_lines():
            yield
    except LayerPruneError as error:
        _end(str(error), type(error).__name__, REFUSED, as_json, "error")
    except KeyboardInterrupt:
        _end(kept(), "KeyboardInterrupt", INTERRUPTED, as_json, "interrupted")


@contextmanager
def _warnings_as_lines() -> Generator[None]:
    """Print warnings of the library as one line each, without the place in its code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, *where: Any) -> None:
            if isinstance(message, LayerPruneWarning):
                typer.echo(f"warning: {message}", err=True)
            else:
                usual(message, *where)

        warnings.showwarning = show
        yield


def _end(message: str, kind: str, code: int, as_json: bool, word: str) -> None:
    typer.echo(f"{word}: {message}", err=True)
    if as_json:
        print_json(_error_record(message, kind, code))
    raise typer.Exit(code)


def _error_record(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"error": message, "type": kind, "code": code}


def print_json(record: Any) -> None:
    """Print a record as JSON; numbers that JSON lacks (infinite, nan) are null."""
    typer.echo(json.dumps(_plain(record), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def check_out(out: str | Path, hint: str = "--out") -> Path:
    """Refuse a folder that cannot be written, before minutes of work."""
    target = Path(out).resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise typer.BadParameter(f"{out} is not an empty folder; name a new or an empty one", param_hint=hint)
    _check_parent(target, out, hint)
    return Path(out)


def check_file(out: Path, hint: str = "--out") -> None:
    """Refuse a file that cannot be written, before minutes of work."""
    if out.is_dir():
        raise typer.BadParameter(f"{out} is a folder; name a file", param_hint=hint)
    _check_parent(out.resolve(), out, hint)


def _check_parent(target: Path, out: str | Path, hint: str) -> None:
    parent = next(parent for parent in target.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise typer.BadParameter(f"{out} cannot be written: {parent} is no folder of yours", param_hint=hint)


def echo_notes(notes: Sequence[str]) -> None:
    """Print notes to standard error."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def print_table(chosen: PruningPlan) -> None:
    """Print the removals, the parameters before and after, and figures of other budgets."""
    from rich.console import Console

    Console().print(chosen)


def files_in(folder: Path) -> list[str]:
    """Names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())
