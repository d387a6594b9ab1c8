"""State outside a model's modules that its code names: globals, closures, class attributes."""

from __future__ import annotations

import builtins
import dis
import functools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import nn

from layerprune.torch_internals import hooks_of

# Packages whose code keeps no state for a forward, except torch's RNGs.
_KNOWN = frozenset({"torch", "numpy", "torchvision", "layerprune", *sys.stdlib_module_names} - {"__main__"})
# Modules of the standard library whose use keeps state outside of the process' own objects.
_KEEPING = frozenset({"ctypes", "dbm", "mmap", "shelve", "socket", "sqlite3"})
_DEPTH = 4  # of calls of functions by functions
_STORES = frozenset({"STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "DELETE_GLOBAL", "DELETE_ATTR"})
_OPCODES = frozenset(dis.opmap[name] for name in _STORES if name in dis.opmap)

_MISSING = object()


@dataclass(frozen=True, eq=False)
class Slot:
    """A place for a value: an entry of a dict or a list, a cell of a closure, or a class attribute.

    Attributes:
        holder: the dict, list, cell or class.
        key: the name or the index; None for a cell.
        is_written: whether the code assigns to it.
    """

    holder: Any
    key: Any = None
    is_written: bool = False

    def get(self) -> Any:
        """The value; a marker if there is none, see :func:`is_filled`."""
        if isinstance(self.holder, CellType):
            try:
                return self.holder.cell_contents
            except ValueError:  # the variable is not assigned yet
                return _MISSING
        if isinstance(self.holder, type):
            return vars(self.holder).get(self.key, _MISSING)
        if isinstance(self.holder, list):
            held = cast("list[Any]", self.holder)
            return held[self.key] if self.key < len(held) else _MISSING
        return self.holder.get(self.key, _MISSING)

    def put(self, value: Any) -> None:
        """Assign a value, or remove the entry if the value is the marker."""
        if isinstance(self.holder, CellType):
            self.holder.cell_contents = value
        elif isinstance(self.holder, type):
            setattr(self.holder, self.key, value)
        elif value is _MISSING:
            self.holder.pop(self.key, None)
        else:
            self.holder[self.key] = value


def is_filled(value: Any) -> bool:
    """Whether a slot's value is not the marker of an empty slot."""
    return value is not _MISSING


def slots_of(model: nn.Module) -> list[Slot]:
    """Slots outside a model's modules that the code of its modules names, each once."""
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
    """Whether a value comes from a package whose code keeps no state."""
    name = getattr(value, "__module__", None) or getattr(type(value), "__module__", "")
    return str(name).partition(".")[0] in _KNOWN


_classes: WeakKeyDictionary[type, dict[tuple[int, Any], Slot]] = WeakKeyDictionary()


def _of_class(cls: type) -> dict[tuple[int, Any], Slot]:
    """Slots that the methods of a class name, and its own data attributes."""
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
    """The Python functions in a value: itself, or those that it wraps."""
    if isinstance(value, (staticmethod, classmethod, MethodType)):
        yield from _functions(value.__func__)
    elif isinstance(value, functools.partial):
        yield from _functions(value.func)
    elif isinstance(value, property):
        yield from (one for one in (value.fget, value.fset) if isinstance(one, FunctionType))
    elif isinstance(value, FunctionType):
        yield value


def _named(function: FunctionType) -> Iterator[Slot]:
    """Slots that a function's code names: closure, globals, defaults, attributes of other modules and classes."""
    code = function.__code__
    names, stored = _names(code), _stored(code)
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
    for value in vars(cls).values():
        yield from _functions(value)


@functools.cache
def _stored(code: CodeType) -> frozenset[str]:
    """Variables and attributes that code assigns to, nested functions included."""
    inner: Iterable[Any] = code.co_consts
    found: set[str] = set()
    if not _OPCODES.isdisjoint(code.co_code[::2]):  # because disassembly is slow
        found = {step.argval for step in dis.get_instructions(code) if step.opname in _STORES}
    return frozenset(found.union(*(_stored(one) for one in inner if isinstance(one, CodeType))))


def _names(code: CodeType) -> frozenset[str]:
    """Names of globals and attributes that code uses, nested functions included."""
    return frozenset(_each_name(code))


def _each_name(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    inner: Iterable[Any] = code.co_consts
    for constant in inner:
        if isinstance(constant, CodeType):
            yield from _each_name(constant)


# ---- state that no run can restore: files, sockets, databases, what C libraries keep -----------------------------


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
    stack = [(function, 0) for function in _functions(getattr(cls, "forward", None))]
    while stack:
        function, depth = stack.pop()
        if id(function) in done or depth > _DEPTH or is_known(function):
            continue
        done.add(id(function))
        yield from _used(function)
        called = [slot.get() for slot in _named(function)]
        called += [getattr(cls, name, None) for name in _names(function.__code__)]
        stack += [(inner, depth + 1) for value in called if not is_known(value) for inner in _functions(value)]


def _used(function: FunctionType) -> Iterator[str]:
    names = _names(function.__code__)
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
