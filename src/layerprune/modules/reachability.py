"""The names outside of a model's modules that its code uses: globals, closures, class attributes."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import nn

from layerprune.torch_internals import hooks_of

# Whose code keeps no state that a forward could depend on, but for what it says itself (torch's RNGs).
_KNOWN = frozenset({"torch", "numpy", "torchvision", "layerprune", *sys.stdlib_module_names} - {"__main__"})
_DEPTH = 4  # functions that functions call
_STORES = frozenset({"STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "DELETE_GLOBAL", "DELETE_ATTR"})
_OPCODES = frozenset(dis.opmap[name] for name in _STORES if name in dis.opmap)

_MISSING = object()


@dataclass(frozen=True, eq=False)
class Slot:
    """A place that holds a value: a name in a dict, a place in a list, a cell of a closure, or a class's attribute.

    Attributes:
        holder: the dict, list, cell or class.
        key: the name or the place; None for a cell.
        is_written: whether the code that names it puts other values there.
    """

    holder: Any
    key: Any = None
    is_written: bool = False

    def get(self) -> Any:
        """The value that lies there; a marker of its own where there is none."""
        if isinstance(self.holder, CellType):
            try:
                return self.holder.cell_contents
            except ValueError:  # nothing assigned yet
                return _MISSING
        if isinstance(self.holder, type):
            return vars(self.holder).get(self.key, _MISSING)
        if isinstance(self.holder, list):
            held = cast("list[Any]", self.holder)
            return held[self.key] if self.key < len(held) else _MISSING
        return self.holder.get(self.key, _MISSING)

    def put(self, value: Any) -> None:
        """Put a value there, or take away what lies there."""
        if isinstance(self.holder, CellType):
            self.holder.cell_contents = value
        elif isinstance(self.holder, type):
            setattr(self.holder, self.key, value)
        elif value is _MISSING:
            self.holder.pop(self.key, None)
        else:
            self.holder[self.key] = value


def is_filled(value: Any) -> bool:
    """Whether a slot held something."""
    return value is not _MISSING


def slots_of(model: nn.Module) -> list[Slot]:
    """The places outside of a model's modules that the code of its modules names, each once."""
    found: dict[tuple[int, Any], Slot] = {}
    for cls in {cls for module in model.modules() for cls in type(module).__mro__}:
        if not is_known(cls):
            found.update(_of_class(cls))
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, (FunctionType, MethodType, functools.partial)):
                found.update(_of_code(value))
        for hooks in hooks_of(module):
            for hook in hooks.values():
                found.update(_of_code(hook))
    return list(found.values())


def is_known(value: Any) -> bool:
    """Whether something comes from a package whose code keeps no state."""
    name = getattr(value, "__module__", None) or getattr(type(value), "__module__", "")
    return str(name).partition(".")[0] in _KNOWN


_classes: WeakKeyDictionary[type, dict[tuple[int, Any], Slot]] = WeakKeyDictionary()


def _of_class(cls: type) -> dict[tuple[int, Any], Slot]:
    """What the methods of a class name, and its own attributes that are neither code nor of the language."""
    if cls not in _classes:
        found: dict[tuple[int, Any], Slot] = {}
        for key, value in vars(cls).items():
            for function in _functions(value):
                found.update(_of_code(function))
            if not key.startswith("__") and not callable(value) and not hasattr(value, "__get__"):
                found.setdefault((id(cls), key), Slot(cls, key, any(key in _stored(f.__code__) for f in _methods(cls))))
        _classes[cls] = found
    return _classes[cls]


def _of_code(value: Any) -> dict[tuple[int, Any], Slot]:
    found: dict[tuple[int, Any], Slot] = {}
    done: set[int] = set()
    stack = [(function, 0) for function in _functions(value)]
    while stack:
        function, depth = stack.pop()
        if id(function) in done or depth > _DEPTH:
            continue
        done.add(id(function))
        for slot in _named(function):
            if slot.is_written or (id(slot.holder), slot.key) not in found:
                found[id(slot.holder), slot.key] = slot
            held = slot.get()
            if not is_known(held):
                stack += [(inner, depth + 1) for inner in _functions(held)]
    return found


def _functions(value: Any) -> Iterator[FunctionType]:
    """The functions that a value is, wraps or is made of."""
    if isinstance(value, (staticmethod, classmethod, MethodType)):
        yield from _functions(value.__func__)
    elif isinstance(value, functools.partial):
        yield from _functions(value.func)
    elif isinstance(value, property):
        yield from (one for one in (value.fget, value.fset) if isinstance(one, FunctionType))
    elif isinstance(value, FunctionType):
        yield value


def _named(function: FunctionType) -> Iterator[Slot]:
    """What a function's code names: its closure, globals, and of other Python modules and classes what it asks for."""
    code = function.__code__
    names, stored = set(_names(code)), _stored(code)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield Slot(cell, None, name in stored)
    own = function.__globals__
    for name in names & own.keys():
        yield Slot(own, name, name in stored)
        value = own[name]
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in _KNOWN:
            yield from (Slot(vars(value), inner, inner in stored) for inner in names & vars(value).keys())
        elif isinstance(value, type) and not is_known(value):
            plain = (inner for inner in names & vars(value).keys() if not callable(vars(value)[inner]))
            yield from (Slot(value, i, i in stored) for i in plain if not hasattr(vars(value)[i], "__get__"))
    for number in range(len(function.__defaults__ or ())):
        yield Slot(list(function.__defaults__ or ()), number)


def _methods(cls: type) -> Iterator[FunctionType]:
    """The functions of a class's body."""
    for value in vars(cls).values():
        yield from _functions(value)


@functools.cache
def _stored(code: CodeType) -> frozenset[str]:
    """The names that code, that of the functions in it included, puts values under: variables and attributes."""
    inner: Iterable[Any] = code.co_consts
    found: set[str] = set()
    if not _OPCODES.isdisjoint(code.co_code[::2]):  # to take all code apart takes long
        found = {step.argval for step in dis.get_instructions(code) if step.opname in _STORES}
    return frozenset(found.union(*(_stored(one) for one in inner if isinstance(one, CodeType))))


def _names(code: CodeType) -> Iterator[str]:
    """The names that code uses, that of the functions in it included."""
    yield from code.co_names
    inner: Iterable[Any] = code.co_consts
    for constant in inner:
        if isinstance(constant, CodeType):
            yield from _names(constant)
