"""Snapshot of everything reachable from a model's modules. Reports what changed since."""

from __future__ import annotations

import enum
import functools
import logging
import random
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.stand_ins import DroppedTensor
from layerprune.tensors import attributes_of
from layerprune.torch_internals import buffers_of, num_writes, parameters_of

# Values without parts, compared as such.
_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, torch.layout)
# Code, and what no forward changes.
_STILL = (
    *(type, ModuleType, BuiltinFunctionType, enum.Enum, logging.Logger, slice, range, property, type(...), np.generic),
    *(np.dtype, type(NotImplemented), torch.memory_format, type({}.get), type("".join), type(dict.get)),
)
_RANDOM: Mapping[type, Callable[[Any], Any]] = {
    torch.Generator: lambda source: source.get_state().tolist(),
    random.Random: lambda source: source.getstate(),
    np.random.Generator: lambda source: repr(source.bit_generator.state),
    np.random.RandomState: lambda source: repr(source.get_state()),
}
_EMPTY = (dict, OrderedDict, list, set)  # exact types: whether one is still empty is quickly asked
_MOST = 500_000  # objects: a model that holds a data set is not looked through


class ModelState:
    """What a model's modules hold, at some moment: attributes down through containers, plain objects and closures.

    Tensors are known by their version counters, all else by identity or, where it has no parts, by value. What lies in
    globals is not seen.

    Args:
        model: the model, as it is at that moment.

    Attributes:
        unseen: what is held whose condition cannot be told; empty if all of it can.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.unseen = ""
        self.modules = list(model.modules())
        self._registers: list[_Register] = []
        self._empty: list[Any] = []
        self._tensors: list[Tensor] = []
        self._random: list[tuple[Any, Callable[[Any], Any], Any]] = []
        self._holders: dict[int, list[int]] = {}
        self._seen: dict[int, Any] = {}  # keeps what is known by its id alive
        self._walk()
        self._versions = [num_writes(tensor) for tensor in self._tensors]

    def changed(self) -> set[int]:
        """The ids of what was there, and is not as it was."""
        found = {register.owner for register in self._registers if register.differs()}
        if any(self._empty):
            found |= {id(container) for container in self._empty if container}
        pairs = zip(self._tensors, self._versions, strict=True)
        found |= {id(tensor) for tensor, version in pairs if num_writes(tensor) != version}
        return found | {id(source) for source, state, before in self._random if state(source) != before}

    def holding(self, ids: Iterable[int]) -> frozenset[int]:
        """The ids of the modules that hold some of what was there, or hold what holds it, and so on."""
        found: set[int] = set()
        stack = list(ids)
        while stack:
            one = stack.pop()
            if one not in found:
                found.add(one)
                stack += self._holders.get(one, ())
        return frozenset(id(module) for module in self.modules if id(module) in found)

    def differing(self, changed: set[int]) -> frozenset[int]:
        """The ids of the modules that are gone, or whose own attributes, parameters or buffers changed."""
        there = {id(module) for module in self.model.modules()}
        return frozenset(
            id(module)
            for module in self.modules
            if id(module) not in there
            or not changed.isdisjoint((id(module), id(parameters_of(module)), id(buffers_of(module))))
        )

    def _walk(self) -> None:
        stack: list[Any] = []
        for cls in {cls for module in self.modules for cls in type(module).__mro__ if not _is_known(cls)}:
            self._registers.append(register := _Register(id(cls), vars(cls)))
            self._hold(cls, register.items, stack)
            self._holders[id(cls)] = [id(module) for module in self.modules if isinstance(module, cls)]
        self._seen[id(self.model)] = self.model
        stack.append(self.model)
        while stack and not self.unseen:
            owner = stack.pop()
            self._hold(owner, self._parts(owner), stack)
            if len(self._seen) > _MOST:
                self.unseen = f"the model holds more than {_MOST:,} objects"

    def _hold(self, owner: Any, parts: Iterable[Any], stack: list[Any]) -> None:
        """Write down who holds what, and what has to be looked through."""
        for part in parts:
            if type(part) in _VALUES or isinstance(part, _STILL):
                continue
            self._holders.setdefault(id(part), []).append(id(owner))
            if id(part) not in self._seen:
                self._seen[id(part)] = part
                stack.append(part)

    def _parts(self, owner: Any) -> Iterator[Any]:
        """What an object holds; what of it may change is written down."""
        if isinstance(owner, Tensor):
            yield from self._parts_of_tensor(owner)
            return
        source = next((state for kind, state in _RANDOM.items() if isinstance(owner, kind)), None)
        if source is not None:
            self._random.append((owner, source, source(owner)))
            return
        containers = list(_containers(owner))
        if not containers and not isinstance(owner, (tuple, frozenset, MethodType, FunctionType, weakref.ref)):
            self.unseen = self.unseen or f"the model holds a {type(owner).__name__}, whose state cannot be looked at"
        for container in containers:
            if type(container) in _EMPTY and not container:
                self._empty.append(container)
                self._holders.setdefault(id(container), []).append(id(owner))
            else:
                self._registers.append(register := _Register(id(owner), container))
                yield from register.items
        yield from _fixed(owner)

    def _parts_of_tensor(self, tensor: Tensor) -> Iterator[Any]:
        if isinstance(tensor, DroppedTensor):  # what an earlier surgery left holds nothing, and stays as it is
            return
        if tensor.is_inference():
            self.unseen = self.unseen or "the model holds a tensor made in inference mode, which counts no writes"
            return
        self._tensors.append(tensor)
        if held := vars(tensor):
            self._registers.append(register := _Register(id(tensor), held))
            yield from register.items


class _Register:
    """A container, and what lay in it."""

    __slots__ = ("container", "ids", "items", "owner")

    def __init__(self, owner: int, container: Any) -> None:
        self.owner = owner
        self.container = container
        self.items = _items(container)
        self.ids = tuple(map(id, self.items))

    def differs(self) -> bool:
        items = _items(self.container)
        if tuple(map(id, items)) == self.ids:
            return False
        return len(items) != len(self.items) or not all(map(_same, items, self.items))


class _Slots:
    """The attributes that an object keeps in slots."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def items(self) -> list[Any]:
        return list(attributes_of(self.owner).values())


def _containers(owner: Any) -> Iterator[Any]:
    """What holds the parts of an object that may change."""
    if isinstance(owner, (dict, list, set, deque, MappingProxyType, CellType, np.ndarray)):
        yield owner
    held = getattr(owner, "__dict__", None)
    if isinstance(held, dict):
        yield held
    if any("__slots__" in vars(cls) for cls in type(owner).__mro__) and not isinstance(owner, (tuple, frozenset)):
        yield _Slots(owner)


def _is_known(cls: type) -> bool:
    """Whether a class is of those that hold no state of their own."""
    return cls is object or cls.__module__.partition(".")[0] in ("torch", "abc", "typing")


def _items(container: Any) -> list[Any]:
    """What lies in a container."""
    if isinstance(container, dict):
        held = cast("dict[Any, Any]", container)
        return [*dict.keys(held), *dict.values(held)]
    if isinstance(container, MappingProxyType):  # of a class: its functions are code
        held = cast("Mapping[str, Any]", container)
        own = (value for name, value in held.items() if not name.startswith("__"))
        return [value for value in own if not callable(value) and not hasattr(value, "__get__")]
    if isinstance(container, CellType):
        try:
            return [container.cell_contents]
        except ValueError:  # nothing assigned yet
            return []
    if isinstance(container, np.ndarray):
        return [str(container.dtype), container.tobytes()]
    return container.items() if isinstance(container, _Slots) else list(container)


def _fixed(owner: Any) -> Iterator[Any]:
    """The parts of an object that stay the ones that they are."""
    if isinstance(owner, (tuple, frozenset)):
        yield from cast("Iterable[Any]", owner)
    elif isinstance(owner, FunctionType):
        yield from owner.__closure__ or ()
        yield from owner.__defaults__ or ()
        yield from (owner.__kwdefaults__ or {}).values()
    elif isinstance(owner, MethodType):
        yield from (owner.__self__, owner.__func__)
    elif isinstance(owner, functools.partial):
        yield from (owner.func, *owner.args, *owner.keywords.values())
    elif isinstance(owner, weakref.ref):
        yield owner()


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (tuple, frozenset)) and not isinstance(one, torch.Size):
        pair = cast("tuple[Any, ...]", one), cast("tuple[Any, ...]", other)
        return len(pair[0]) == len(pair[1]) and all(map(_same, *pair))
    return isinstance(one, (*_VALUES, MethodType)) and one == other
