"""Lets one thread at a time plan or prune, since recording changes state of the whole process.

Recording restores the global random number generator, switches torch's fused attention off, and silences torch's log.
Two threads at once would undo each other's changes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import ParamSpec, TypeVar

Class = TypeVar("Class", bound=type)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_LOCK = threading.Lock()
_holder: object | None = None
#: The holder's token. Threads that the holder starts in a copy of its context share its lock.
_CLAIM: ContextVar[object | None] = ContextVar("layerprune_process_lock", default=None)


@contextmanager
def exclusive() -> Generator[None]:
    """Hold the lock inside; the holder, and threads started in a copy of its context, enter at once."""
    global _holder
    claim = _CLAIM.get()
    if claim is not None and claim is _holder:
        yield
        return
    with _LOCK:
        _holder = claim = object()
        token = _CLAIM.set(claim)
        try:
            yield
        finally:
            _CLAIM.reset(token)
            _holder = None


class SharedContext:
    """A context with several users at once: the first enters it, and the last to leave exits it."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make = make
        self._counting = threading.Lock()
        self._num_users = 0
        self._entered = ExitStack()

    @contextmanager
    def __call__(self) -> Generator[None]:
        with self._counting:
            if self._num_users == 0:
                self._entered.enter_context(self._make())
            self._num_users += 1
        try:
            yield
        finally:
            with self._counting:
                self._num_users -= 1
                if self._num_users == 0:
                    self._entered.close()


def locked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run a function under the process lock."""

    @functools.wraps(function)
    def holding(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with exclusive():
            return function(*args, **kwargs)

    return holding


def holding_process_lock(*, but: Sequence[str] = ()) -> Callable[[Class], Class]:
    """Let one thread at a time into the public methods and properties of a class's instances, except ``but``."""

    def decorate(cls: Class) -> Class:
        for name, member in list(vars(cls).items()):
            if (name.startswith("_") and name != "__init__") or name in but:
                continue
            if isinstance(member, FunctionType):
                setattr(cls, name, locked(member))
            elif isinstance(member, property) and member.fget is not None:
                setattr(cls, name, property(locked(member.fget), doc=member.__doc__))
        return cls

    return decorate
