"""Methods of a removed module's class that its stand-in keeps, because other modules may call them.

A model calls other methods of its layers than forward, to build caches or to ask for sizes, say. A method is kept if it
reads no weight and no submodule of the layer.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from layerprune.torch_internals import MODULE_DICTS, buffers_of, children_of, parameters_of

# Names that read everything a module holds.
_WHOLE = frozenset(
    f"{prefix}{kind}" for kind in ("parameters", "buffers", "modules", "children") for prefix in ("", "named_")
) | {"state_dict", "load_state_dict", "apply", *MODULE_DICTS, "__dict__", "__class__", "super"}
# Parts of the names of methods that set a model up.
_SETTING_UP = ("init", "reset", "load")
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.Size)


class Member(NamedTuple):
    """A method or property of a class, and the names that it reads, directly or through other methods."""

    what: Any
    reads: frozenset[str]


@functools.cache
def members(cls: type) -> Mapping[str, Member]:
    """Methods and properties that a module's class adds to :class:`torch.nn.Module`, except its forward.

    Args:
        cls: the class; torch's own classes add none.
    """
    bases = [base for base in cls.__mro__ if base not in nn.Module.__mro__ and not base.__module__.startswith("torch.")]
    found: dict[str, Any] = {}
    for base in reversed(bases):
        found |= {key: value for key, value in vars(base).items() if not key.startswith("__") and key != "forward"}
    codes = {key: code for key, value in found.items() if (code := _code(value)) is not None}
    reads = {key: _names(code) for key, code in codes.items()}
    return {key: Member(found[key], _closure(key, reads)) for key in codes}


def _code(member: Any) -> CodeType | None:
    function = member.fget if isinstance(member, property) else member
    if isinstance(function, (staticmethod, classmethod)):
        function = cast("staticmethod[Any, Any]", function).__func__
    function = inspect.unwrap(function) if isinstance(function, FunctionType) else None  # no_grad wraps functions
    return function.__code__ if isinstance(function, FunctionType) else None


def _names(code: CodeType) -> frozenset[str]:
    """Names of attributes and globals that code may read, nested functions included."""
    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname.startswith("LOAD_")}
    inside = (const for const in code.co_consts if isinstance(const, CodeType))
    return frozenset(own).union(*map(_names, inside))


def _closure(key: str, reads: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Names that a method reads, also through other methods of its class."""
    found, pending = {key}, [key]
    while pending:
        new = (reads.get(pending.pop()) or frozenset()) - found
        found |= new
        pending += new
    return frozenset(found)


@functools.cache
def parts_read(cls: type) -> Mapping[str, frozenset[tuple[str, str]]]:
    """Attributes of submodules that methods outside the forward read: submodule → (method, attribute).

    For instance, a method that fuses the weights of three projections. Methods that set a model up are left out.
    """
    forward = getattr(cls.forward, "__code__", None)
    reads = {key: member.reads for key, member in members(cls).items()}
    run = _closure("forward", {**reads, "forward": frozenset() if forward is None else _names(forward)})
    found: dict[str, set[tuple[str, str]]] = {}
    for key, member in members(cls).items():
        code = _code(member.what)
        if code is None or key in run or any(word in key for word in _SETTING_UP):
            continue
        steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "EXTENDED_ARG")]
        for one, part, attribute in zip(steps, steps[1:], steps[2:], strict=False):
            loads = part.opname == "LOAD_ATTR" and attribute.opname == "LOAD_ATTR"
            if loads and one.opname.startswith("LOAD_FAST") and code.co_varnames[:1] == (one.argval,):
                found.setdefault(str(part.argval), set()).add((key, str(attribute.argval)))
    return {part: frozenset(reads) for part, reads in found.items()}


def kept_members(module: nn.Module) -> dict[str, frozenset[str]]:
    """Methods and properties that read no weight and no submodule of a module, with the names that each reads."""
    gone = {*parameters_of(module), *buffers_of(module), *children_of(module), *_WHOLE}
    held = vars(module)
    return {
        key: member.reads
        for key, member in members(type(module)).items()
        if gone.isdisjoint(member.reads) and all(is_plain(held[name]) for name in member.reads if name in held)
    }


def is_plain(value: Any, depth: int = 0, *, deep: bool = True) -> bool:
    """Whether a value holds no tensor, no module and no code, so that it keeps no part of the model alive.

    ``depth`` containers lie around it. With ``deep``, objects of other classes count by their attributes, as settings.
    """
    if isinstance(value, _PLAIN):
        return True
    if depth > 3 or isinstance(value, (Tensor, nn.Module, type)) or callable(value):
        return False
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(is_plain(item, depth + 1, deep=deep) for item in cast("list[Any]", value))
    if isinstance(value, Mapping):
        return all(is_plain(item, depth + 1, deep=deep) for item in cast("Mapping[Any, Any]", value).values())
    own = getattr(value, "__dict__", None) if deep else None
    return own is not None and all(is_plain(item, depth + 1) for item in own.values())


def class_values(cls: type) -> dict[str, Any]:
    """Plain class attributes of a module's class and its bases."""
    found: dict[str, Any] = {}
    for base in reversed([base for base in cls.__mro__ if base not in nn.Module.__mro__]):
        found |= {key: value for key, value in vars(base).items() if not key.startswith("_")}
    return {key: value for key, value in found.items() if is_plain(value, deep=False)}


def bound(member: Any, owner: Any) -> Any:
    """A class member bound to an object that is no instance of the class."""
    if isinstance(member, property):
        return cast("Callable[[Any], Any]", member.fget)(owner)
    if isinstance(member, staticmethod):
        return cast("staticmethod[Any, Any]", member).__func__
    if isinstance(member, classmethod):
        return MethodType(cast("classmethod[Any, Any, Any]", member).__func__, type(owner))
    return MethodType(member, owner)
