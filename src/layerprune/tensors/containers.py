"""Finds tensors at any depth of a value, or replaces them in a copy."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

# Shared, not copied: code, modules with weights of their own, and values without parts.
_ATOMS = (
    *(int, float, complex, bool, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size, torch.Generator),
    *(nn.Module, FunctionType, BuiltinFunctionType, MethodType, ModuleType),
)
_LEAVES = (Tensor, np.ndarray)
_MUTABLE: tuple[Any, ...] = (dict, list, deque)


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor at any depth of a value, each once, in depth-first order.

    Visits sequences, sets, mappings, dataclasses, named tuples and the attributes of any other object, but not modules
    and functions. Cycles are fine.
    """
    return list(_walk(value))


def tensors_by_place(value: Any) -> list[Tensor]:
    """Return the tensor at every place of a value; a tensor in several places is returned several times.

    Two values of one form give lists of one length, whichever tensors are the same object. Visits the same objects as
    :func:`tensors_in`; an attribute that is also an item of its object counts as one place.

    >>> x = torch.zeros(1)
    >>> len(tensors_by_place([x, {"again": x}])), len(tensors_in([x, {"again": x}]))
    (2, 1)
    """
    return list(_places(value, frozenset()))


def map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a value with every tensor that :func:`tensors_in` finds passed through ``fn``.

    Changes to the copy never reach the value: containers and objects are copied whether they hold a tensor or not, also
    frozen dataclasses and objects with slots. Code, modules and objects that cannot be copied (a lock, a file) are
    shared. A tensor or container that occurs twice stays one object.
    """
    return _rebuild(value, fn, {}, Tensor)


def map_arrays(value: Any, fn: Callable[[np.ndarray], Any]) -> Any:
    """Return a copy of a value as :func:`map_tensors` does, with every numpy array passed through ``fn`` instead."""
    return _rebuild(value, fn, {}, np.ndarray)


def _walk(root: Any, leaf: type = Tensor) -> Iterator[Any]:
    seen: set[int] = set()
    stack = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, _ATOMS) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, leaf):
            yield value
        elif not isinstance(value, _LEAVES):
            stack += reversed([*_items(value).values(), *attributes_of(value).values()])


def _places(value: Any, around: frozenset[int]) -> Iterator[Tensor]:
    """Yield the tensors of a value; a container inside itself is not visited again."""
    if isinstance(value, Tensor):
        yield value
    elif not isinstance(value, _ATOMS) and id(value) not in around:
        items = list(_items(value).values())
        known = {id(item) for item in items}
        for item in (*items, *(held for held in attributes_of(value).values() if id(held) not in known)):
            yield from _places(item, around | {id(value)})


def _rebuild(value: Any, fn: Callable[[Any], Any], memo: dict[int, Any], leaf: type) -> Any:
    """Map one value; ``memo`` holds id of a mapped object → its result."""
    if isinstance(value, _ATOMS):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, leaf):
        memo[id(value)] = fn(value)
    elif isinstance(value, _LEAVES):
        memo[id(value)] = value
    else:
        clone = memo[id(value)] = _shell(value, fn, memo, leaf)
        if clone is not value:  # an object whose copy() is itself must not be changed
            _fill(clone, value, fn, memo, leaf)
    return memo[id(value)]


def _shell(value: Any, fn: Callable[[Any], Any], memo: dict[int, Any], leaf: type) -> Any:
    """Copy an object shallowly; an immutable container is made of its new items at once."""
    if isinstance(value, (tuple, frozenset)):
        items = [_rebuild(item, fn, memo, leaf) for item in cast("tuple[Any, ...]", value)]
        if all(new is old for new, old in zip(items, cast("tuple[Any, ...]", value), strict=True)):
            return value
        if isinstance(value, frozenset):
            return type(value)(items)
        try:
            return tuple.__new__(type(value), items)  # named tuples too, past any __new__ of their own
        except TypeError:  # torch.return_types
            return type(value)(items)
    if isinstance(value, set):
        return type(value)(_rebuild(item, fn, memo, leaf) for item in value)
    if isinstance(value, MappingProxyType):
        return MappingProxyType({key: _rebuild(item, fn, memo, leaf) for key, item in value.items()})
    if isinstance(value, _MUTABLE) or next(_walk(value, leaf), None) is not None:
        return copy.copy(value)
    try:
        return copy.copy(value)
    except Exception:  # the class's own code may raise anything; an object without tensors can be shared
        return value


def _fill(clone: Any, value: Any, fn: Callable[[Any], Any], memo: dict[int, Any], leaf: type) -> None:
    """Replace the parts of a shallow copy, bypassing the item and attribute access of its class."""
    base = next((base for base in _MUTABLE if isinstance(value, base)), None)
    if base is not None:
        for key, item in _items(value).items():
            base.__setitem__(clone, key, _rebuild(item, fn, memo, leaf))
    for name, item in attributes_of(value).items():
        new = _rebuild(item, fn, memo, leaf)
        if new is not item:
            object.__setattr__(clone, name, new)


def _items(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return dict(dict.items(cast("dict[Any, Any]", value)))
    if isinstance(value, MappingProxyType):
        return dict(cast("MappingProxyType[Any, Any]", value))
    if isinstance(value, (list, tuple, deque, set, frozenset)):
        return dict(enumerate(cast("list[Any]", value)))
    return {}


def attributes_of(value: Any) -> dict[str, Any]:
    """Return an object's own attributes, including slots."""
    found = dict(cast("dict[str, Any]", getattr(value, "__dict__", {})))
    for cls in type(value).__mro__:
        if "__slots__" in cls.__dict__:
            members = (name for name, item in cls.__dict__.items() if isinstance(item, MemberDescriptorType))
            found |= {name: getattr(value, name) for name in members if hasattr(value, name)}
    return found
