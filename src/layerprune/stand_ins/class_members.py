"""Members of a removed module's class that its stand-in keeps, so that other code can call them.

A host calls more of its layers than their forward: it lets them build caches, and asks for their sizes.
Such a method is kept where it reads no weight and no part of the layer, which are gone; all it reads must be there.
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

# What a method reads that goes through all that a module holds.
_WHOLE = frozenset(
    f"{prefix}{kind}" for kind in ("parameters", "buffers", "modules", "children") for prefix in ("", "named_")
) | {"state_dict", "load_state_dict", "apply", *MODULE_DICTS, "__dict__", "__class__", "super"}
# What the names of methods that set a model up hold.
_SETTING_UP = ("init", "reset", "load")
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.Size)


class Member(NamedTuple):
    """A method or property of a class, and the names that it reads, those that it calls included."""

    what: Any
    reads: frozenset[str]


@functools.cache
def members(cls: type) -> Mapping[str, Member]:
    """The methods and properties that a module's class adds to :class:`torch.nn.Module`, but for its forward.

    Args:
        cls: the class; those of torch itself add none.
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
    function = inspect.unwrap(function) if isinstance(function, FunctionType) else None  # as no_grad wraps it
    return function.__code__ if isinstance(function, FunctionType) else None


def _names(code: CodeType) -> frozenset[str]:
    """The names of all attributes and globals that code may read, of functions inside it, too."""
    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname.startswith("LOAD_")}
    inside = (const for const in code.co_consts if isinstance(const, CodeType))
    return frozenset(own).union(*map(_names, inside))


def _closure(key: str, reads: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """What a method reads, and the methods of its class do that it names."""
    found, pending = {key}, [key]
    while pending:
        new = (reads.get(pending.pop()) or frozenset()) - found
        found |= new
        pending += new
    return frozenset(found)


@functools.cache
def parts_read(cls: type) -> Mapping[str, frozenset[tuple[str, str]]]:
    """What a module's class reads of its parts where its forward does not get to: part → (method, attribute).

    A fusing method, say, that joins the weights of three projections. What sets a model up first is left out.
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
    """The methods and properties of a module that work without its weights and parts, and the names that each reads."""
    gone = {*parameters_of(module), *buffers_of(module), *children_of(module), *_WHOLE}
    held = vars(module)
    return {
        key: member.reads
        for key, member in members(type(module)).items()
        if gone.isdisjoint(member.reads) and all(is_plain(held[name]) for name in member.reads if name in held)
    }


def is_plain(value: Any, depth: int = 0, *, deep: bool = True) -> bool:
    """Whether a value holds no tensor, no module and no code: nothing of the model's own stays alive with it.

    Args:
        value: the value.
        depth: how many containers it lies in.
        deep: whether objects of classes of their own count, which settings often are.
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
    """The plain values that a module's class, or a base of it, holds for all its objects."""
    found: dict[str, Any] = {}
    for base in reversed([base for base in cls.__mro__ if base not in nn.Module.__mro__]):
        found |= {key: value for key, value in vars(base).items() if not key.startswith("_")}
    return {key: value for key, value in found.items() if is_plain(value, deep=False)}


def bound(member: Any, owner: Any) -> Any:
    """What a member of a class gives for an object that stands for one of the class."""
    if isinstance(member, property):
        return cast("Callable[[Any], Any]", member.fget)(owner)
    if isinstance(member, staticmethod):
        return cast("staticmethod[Any, Any]", member).__func__
    if isinstance(member, classmethod):
        return MethodType(cast("classmethod[Any, Any, Any]", member).__func__, type(owner))
    return MethodType(member, owner)
