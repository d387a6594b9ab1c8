"""A progress bar on the terminal for work that takes seconds."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressMessage(Protocol):
    """Told how many steps of how many are done, and what else is worth a look meanwhile."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


@contextmanager
def progress_bar(what: str, wanted: bool | None) -> Generator[ProgressMessage]:
    """Show a bar on standard error while something runs, and take it off again.

    Args:
        what: stands before the bar.
        wanted: whether to show it; None for where standard error is a terminal.
    """
    console = Console(stderr=True)
    if not (console.is_terminal if wanted is None else wanted):
        yield lambda done, total, note="": None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, note="")
        yield lambda done, total, note="": progress.update(task, completed=done, total=total, note=note)
