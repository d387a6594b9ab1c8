"""Progress bars on the terminal, for work that takes longer than a second."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LOG = logging.getLogger("layerprune.progress")

#: Seconds of work before a bar appears.
DELAY_S = 1.0

#: Whether bars of the work inside are shown; None: only if standard error is a terminal.
_WANTED: ContextVar[bool | None] = ContextVar("layerprune_progress", default=None)


class ProgressMessage(Protocol):
    """Gets the number of finished steps, of all steps, and a note."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


@contextmanager
def showing_progress(wanted: bool | None) -> Generator[None]:
    """Decide about all bars inside; ``None``: only on a terminal."""
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


@contextmanager
def progress_bar(what: str, wanted: bool | None = None) -> Generator[ProgressMessage]:
    """Show a progress bar with the remaining time after the text ``what``, on standard error; log its end (``INFO``).

    A bar inside another one is a further line of the same display.

    Args:
        what: the work, in a few words.
        wanted: whether to show it; None for the choice of :func:`showing_progress`, which is a terminal by default.
    """
    wanted = _WANTED.get() if wanted is None else wanted
    start = time.perf_counter()
    if not (Console(stderr=True).is_terminal if wanted is None else wanted):
        yield lambda done, total, note="": None
    else:
        task = _DISPLAY.open(what)
        try:
            yield lambda done, total, note="": _DISPLAY.tell(task, done, total, note)
        finally:
            _DISPLAY.close(task)
    _LOG.info("%s: %.1f s", what, time.perf_counter() - start)


class _Display:
    """The only live display of the process; it appears after :data:`DELAY_S`, and leaves with its last bar."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._progress: Progress | None = None
        self._timer: threading.Timer | None = None

    def open(self, what: str) -> TaskID:
        with self._lock:
            if self._progress is None:
                self._progress = Progress(
                    TextColumn("{task.description}", markup=False),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[note]}", markup=False),
                    TimeRemainingColumn(elapsed_when_finished=True),
                    console=Console(stderr=True),
                    transient=True,
                    redirect_stdout=False,
                )
                self._timer = threading.Timer(DELAY_S, self._appear, (self._progress,))
                self._timer.daemon = True
                self._timer.start()
            return self._progress.add_task(what, total=None, note="")

    def _appear(self, progress: Progress) -> None:
        with self._lock:
            if self._progress is progress:
                progress.start()

    def tell(self, task: TaskID, done: int, total: int, note: str) -> None:
        with self._lock:
            if self._progress is not None and task in self._progress.task_ids:
                self._progress.update(task, completed=done, total=total, note=note)

    def close(self, task: TaskID) -> None:
        with self._lock:
            if self._progress is None:
                return
            if task in self._progress.task_ids:
                self._progress.remove_task(task)
            if self._progress.task_ids:
                return
            assert self._timer is not None
            self._timer.cancel()
            self._progress.stop()
            self._progress = self._timer = None


_DISPLAY = _Display()
