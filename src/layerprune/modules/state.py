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

# Values without parts, compared by value.
_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, torch.layout)
# Code, and objects that no forward changes.
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
_EMPTY = (dict, OrderedDict, list, set)  # exact types with a fast test for emptiness
_MOST = 500_000  # objects: a model that holds a data set would take too long


class ModelState:
    """Snapshot of everything in a model's modules: attributes, containers, plain objects and closures.

    Tensors are compared by version counter, values without parts by value, other objects by identity. Globals are not
    included.

    Attributes:
        unseen: an object whose state cannot be compared, as a reason; empty if there is none.
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
        self._seen: dict[int, Any] = {}  # keeps objects alive, so that ids stay unique
        self._walk()
        self._versions = [num_writes(tensor) for tensor in self._tensors]

    def changed(self) -> set[int]:
        """Ids of objects that changed since the snapshot."""
        found = {register.owner for register in self._registers if register.differs()}
        if any(self._empty):
            found |= {id(container) for container in self._empty if container}
        pairs = zip(self._tensors, self._versions, strict=True)
        found |= {id(tensor) for tensor, version in pairs if num_writes(tensor) != version}
        return found | {id(source) for source, state, before in self._random if state(source) != before}

    def holding(self, ids: Iterable[int]) -> frozenset[int]:
        """Ids of modules that hold one of these objects, directly or indirectly."""
        found: set[int] = set()
        stack = list(ids)
        while stack:
            one = stack.pop()
            if one not in found:
                found.add(one)
                stack += self._holders.get(one, ())
        return frozenset(id(module) for module in self.modules if id(module) in found)

    def differing(self, changed: set[int]) -> frozenset[int]:
        """Ids of modules that were removed, or whose own attributes, parameters or buffers changed."""
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
        """Record the holder of each part, and push new parts on the stack."""
        for part in parts:
            if type(part) in _VALUES or isinstance(part, _STILL):
                continue
            self._holders.setdefault(id(part), []).append(id(owner))
            if id(part) not in self._seen:
                self._seen[id(part)] = part
                stack.append(part)

    def _parts(self, owner: Any) -> Iterator[Any]:
        """The parts of an object; records those that may change."""
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
        if isinstance(tensor, DroppedTensor):  # an earlier surgery left it; it never changes
            return
        if tensor.is_inference():
            self.unseen = self.unseen or "the model holds a tensor made in inference mode, which counts no writes"
            return
        self._tensors.append(tensor)
        if held := vars(tensor):
            self._registers.append(register := _Register(id(tensor), held))
            yield from register.items


class _Register:
    """A container and its items at the snapshot."""

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
    """The attributes that an object keeps in ``__slots__``."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def items(self) -> list[Any]:
        return list(attributes_of(self.owner).values())


def _containers(owner: Any) -> Iterator[Any]:
    """The containers of an object's parts that may change."""
    if isinstance(owner, (dict, list, set, deque, MappingProxyType, CellType, np.ndarray)):
        yield owner
    held = getattr(owner, "__dict__", None)
    if isinstance(held, dict):
        yield held
    if any("__slots__" in vars(cls) for cls in type(owner).__mro__) and not isinstance(owner, (tuple, frozenset)):
        yield _Slots(owner)


def _is_known(cls: type) -> bool:
    return cls is object or cls.__module__.partition(".")[0] in ("torch", "abc", "typing")


def _items(container: Any) -> list[Any]:
    if isinstance(container, dict):
        held = cast("dict[Any, Any]", container)
        return [*dict.keys(held), *dict.values(held)]
    if isinstance(container, MappingProxyType):  # namespace of a class; its functions are code
        held = cast("Mapping[str, Any]", container)
        own = (value for name, value in held.items() if not name.startswith("__"))
        return [value for value in own if not callable(value) and not hasattr(value, "__get__")]
    if isinstance(container, CellType):
        try:
            return [container.cell_contents]
        except ValueError:  # the variable is not assigned yet
            return []
    if isinstance(container, np.ndarray):
        return [str(container.dtype), container.tobytes()]
    return container.items() if isinstance(container, _Slots) else list(container)


def _fixed(owner: Any) -> Iterator[Any]:
    """The parts of an object that never change."""
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
