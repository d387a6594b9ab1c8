"""Turns: one thread at a time plans or prunes, since recording a forward uses what belongs to the whole process.

The global random number generator is put back, torch's fused attention is switched off and on again, and torch's log is
quiet meanwhile: two threads at once would put back what the other one had changed.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

_TURN = threading.RLock()


def holding_process_lock(*, but: Sequence[str] = ()) -> Callable[[Class], Class]:
    """Let one thread at a time into what is public of a class's instances, of all of them: methods and properties.

    Args:
        but: names of methods that nobody has to wait for.
    """

    def decorate(cls: Class) -> Class:
        for name, member in list(vars(cls).items()):
            if (name.startswith("_") and name != "__init__") or name in but:
                continue
            if isinstance(member, FunctionType):
                setattr(cls, name, _in_turn(member))
            elif isinstance(member, property) and member.fget is not None:
                setattr(cls, name, property(_in_turn(member.fget), doc=member.__doc__))
        return cls

    return decorate


def _in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def waiting(*args: Any, **kwargs: Any) -> Any:
        with _TURN:
            return function(*args, **kwargs)

    return waiting
