"""State of forwards that no run can restore: files, sockets, databases, and what C libraries keep."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from torch import nn

from layerprune.modules.reachability import functions_in, is_known, named_slots, names_in

# Modules of the standard library whose use keeps state outside of the process' own objects.
_KEEPING = frozenset({"ctypes", "dbm", "mmap", "shelve", "socket", "sqlite3"})
_DEPTH = 4  # of calls of functions by functions


def notes_on_unseen_state(model: nn.Module) -> list[str]:
    """One note for each class whose forward uses files or libraries that may keep state, with what it uses."""
    found: list[str] = []
    for cls in dict.fromkeys(type(module) for module in model.modules()):
        used = {} if is_known(cls) else dict.fromkeys(_used_by(cls))
        if used:
            what = ", ".join(list(used)[:3])
            found.append(
                f"the forward of {cls.__name__} uses {what}: state that it keeps outside of Python's objects is not "
                "restored after a run, and no proof sees it"
            )
    return found


def _used_by(cls: type) -> Iterator[str]:
    """What a class's forward uses, itself or by functions and methods that it calls."""
    done: set[int] = set()
    stack = [(function, 0) for function in functions_in(getattr(cls, "forward", None))]
    while stack:
        function, depth = stack.pop()
        if id(function) in done or depth > _DEPTH or is_known(function):
            continue
        done.add(id(function))
        yield from _used(function)
        called = [slot.get() for slot in named_slots(function)]
        called += [getattr(cls, name, None) for name in names_in(function.__code__)]
        stack += [(inner, depth + 1) for value in called if not is_known(value) for inner in functions_in(value)]


def _used(function: FunctionType) -> Iterator[str]:
    names = names_in(function.__code__)
    if "open" in names and function.__globals__.get("open", builtins.open) is builtins.open:
        yield "open()"
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            if value.__name__.partition(".")[0] in _KEEPING:
                yield value.__name__
            yield from (f"{name}.{inner}()" for inner in sorted(names) if _is_compiled(vars(value).get(inner)))
        elif _is_compiled(value):
            yield f"{name}()"


def _is_compiled(value: Any) -> bool:
    """Whether a function is compiled code of a package that is not known to keep no state."""
    return isinstance(value, BuiltinFunctionType) and bool(value.__module__) and not is_known(value)
