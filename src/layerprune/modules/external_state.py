"""State of forwards outside parameters and plain attributes: lists, counters, iterators.

It lies in globals, closures, classes and attributes of modules. Planning runs forwards many times and restores this
state, so that the user's next forward continues after the user's last one.
"""

from __future__ import annotations

import functools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.modules.interpose import watched
from layerprune.modules.iterators import copied, is_sequence, left_of, stand_in_for
from layerprune.modules.reachability import Slot, is_filled, is_known, slots_of

_STILL = (int, float, complex, str, bytes, type(None), type, Tensor, nn.Module, ModuleType, torch.dtype, torch.device)
_CODE = (FunctionType, BuiltinFunctionType)
_CONTAINERS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)
_CONSTANT = (str, int, float, type(None), type, torch.dtype)  # entries of registries and settings
_REGISTERS = frozenset(vars(nn.Module())) | {"forward"}
_RANDOM: Mapping[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    torch.Generator: (lambda one: one.get_state(), lambda one, state: one.set_state(state)),
    random.Random: (lambda one: one.getstate(), lambda one, state: one.setstate(state)),
    np.random.RandomState: (lambda one: one.get_state(), lambda one, state: one.set_state(state)),
    np.random.Generator: (
        lambda one: one.bit_generator.state,
        lambda one, state: setattr(one.bit_generator, "state", state),
    ),
}
_DEPTH = 4
_MOST = 5_000  # objects: a larger collection is data, not state
_MANY = 128  # entries: larger containers are not compared during a forward

_running = 0


class ExternalState:
    """State that a model's forwards may change beside its parameters and plain attributes.

    Args:
        model: the model, or a copy of it that will run.

    Attributes:
        has_sequences: whether there is an iterator from which a forward may take items.
        has_changed: whether a run changed the state.
        has_moved: whether a run changed attributes of modules, on which the next forward may depend.
        notes: state that cannot be restored, for the user.
    """

    def __init__(self, model: nn.Module) -> None:
        self.has_sequences = False
        self.has_changed = False
        self.has_moved = False
        self._held, self._named = _State(), _State()
        seen: set[int] = set()
        for module in model.modules():
            for key, value in vars(module).items():
                if not isinstance(value, _STILL) and key not in _REGISTERS:
                    self._held.look_at(Slot(vars(module), key), value, seen)
        for slot in slots_of(model):
            if slot.is_written:
                self._named.slots.append(slot)
            if is_filled(value := slot.get()):
                self._named.look_at(slot, value, seen)
        self.has_sequences = bool(self._held.sequences or self._named.sequences)
        self._watched = [one for one in self._named.containers if not _is_constant(one)]
        self._numbers = [slot for slot in self._named.slots if isinstance(slot.get(), (int, float, type(None)))]
        self.notes = [
            f"the model holds a {type(value).__name__} as '{slot.key}': the items that planning takes of it are gone"
            for slot in self._held.sequences
            if copied(value := slot.get()) is None
        ]

    @contextmanager
    def left_alone(self) -> Generator[None]:
        """Restore at the end all state that a run inside changes."""
        global _running
        states = [self._held] if _running else [self._held, self._named]  # the outer run restores named state
        takes_back: list[Callable[[], bool]] = []
        _running += 1
        try:
            takes_back += [state.note() for state in states]
            yield
        finally:
            _running -= 1
            for number, take_back in enumerate(takes_back):
                changed = take_back()
                self.has_changed |= changed
                self.has_moved |= changed and number == 0  # the first state is that of the modules' attributes

    @contextmanager
    def watched(self, model: nn.Module) -> Generator[None]:
        """Detect, at each module call inside, changes of named state that the end of the run may hide."""
        before = self._contents()

        def wrap(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(forward)
            def looking(*args: Any, **kwargs: Any) -> Any:
                self.has_changed = self.has_changed or self._contents() != before
                return forward(*args, **kwargs)

            return looking

        with watched(model, wrap):
            yield

    def _contents(self) -> Any:
        """Contents of the named state; an empty container equals None."""
        contexts = [_contents(context.get(None)) for context in self._named.contexts]
        return contexts, [slot.get() for slot in self._numbers], [_contents(one) for one in self._watched]


class _State:
    """Slots, and the objects in them that may change."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.sequences: list[Slot] = []
        self.containers: list[Any] = []
        self.random: list[tuple[Any, Callable[[Any], Any], Callable[[Any, Any], Any]]] = []
        self.contexts: list[ContextVar[Any]] = []

    def look_at(self, slot: Slot, value: Any, seen: set[int], depth: int = 0) -> None:
        """Collect the objects that may change, in a value and in its contents."""
        if isinstance(value, _STILL) or depth > _DEPTH or len(seen) > _MOST:
            return
        if is_sequence(value):
            self.sequences.append(slot)
        if id(value) in seen:
            return
        seen.add(id(value))
        self.random += [(value, get, put) for kind, (get, put) in _RANDOM.items() if isinstance(value, kind)]
        if isinstance(value, ContextVar):
            self.contexts.append(cast("ContextVar[Any]", value))
        elif isinstance(value, _CONTAINERS):
            self.containers.append(value)
            for inner, item in _entries(value, slot):
                self.look_at(inner, item, seen, depth + 1)
        elif isinstance(value, MethodType):
            self.look_at(slot, value.__self__, seen, depth)
        elif not isinstance(value, _CODE) and not _is_library(value):
            held = getattr(value, "__dict__", None)
            self.look_at(slot, held if isinstance(held, dict) else None, seen, depth)

    def note(self) -> Callable[[], bool]:
        """Record the state, and replace iterators by copies for a run.

        Returns:
            A function that restores the state; it returns whether the state had changed.
        """
        slots = [(slot, slot.get()) for slot in self.slots]
        containers = [(one, _copied(one)) for one in self.containers]
        states = [(one, put, get(one)) for one, get, put in self.random]
        sequences = [(slot, value) for slot in self.sequences if is_sequence(value := slot.get())]
        stand_ins = {id(value): stand_in_for(value) for _, value in sequences}
        for slot, value in sequences:
            slot.put(stand_ins[id(value)])

        def take_back() -> bool:
            changed = [pair for pair in containers if _ids(pair[0]) != _ids(pair[1])]
            moved = [(slot, value) for slot, value in slots if slot.get() is not value and not is_sequence(value)]
            for one, before in changed:
                _refill(one, before)
            for slot, value in moved:
                slot.put(value)
            for one, put, state in states:
                put(one, state)
            left = {id(value): left_of(value, stand_ins[id(value)]) for _, value in sequences}
            for slot, value in sequences:
                slot.put(left[id(value)])
            return bool(changed or moved)

        return take_back


def _entries(container: Any, slot: Slot) -> Iterator[tuple[Slot, Any]]:
    """Items of a container with their slots; items of a set or a queue have the slot of the container."""
    if isinstance(container, dict):
        yield from ((Slot(container, key), item) for key, item in cast("dict[Any, Any]", container).items())
    elif isinstance(container, list):
        yield from ((Slot(container, place), item) for place, item in enumerate(cast("list[Any]", container)))
    else:
        yield from ((slot, item) for item in container if not is_sequence(item))


def _is_library(value: Any) -> bool:
    return is_known(type(value)) and type(value) is not SimpleNamespace


def _is_constant(container: Any) -> bool:
    """Whether a container holds settings or a registry of code."""
    items = _items(container)
    return bool(items) and (len(items) > _MANY or all(isinstance(one, _CONSTANT) or callable(one) for one in items))


def _items(container: Any) -> list[Any]:
    """Keys and values, or elements, without use of a subclass's own accessors."""
    if isinstance(container, dict):
        held = cast("dict[Any, Any]", container)
        return [*dict.keys(held), *dict.values(held)]
    return list(container)


def _ids(container: Any) -> list[int]:
    return [0 if is_sequence(item) else id(item) for item in _items(container)]


def _copied(container: Any) -> Any:
    return dict(dict.items(container)) if isinstance(container, dict) else list(container)


def _refill(container: Any, before: Any) -> None:
    base = next(base for base in _CONTAINERS if isinstance(container, base))
    base.clear(container)
    (base.update if base in (OrderedDict, dict, set) else base.extend)(container, before)


def _contents(value: Any, depth: int = 3) -> Any:
    """Contents of a value, by identity; empty for None and empty containers."""
    if value is None:
        return ()
    if depth == 0 or not isinstance(value, _CONTAINERS):
        return id(value)
    return tuple(_contents(item, depth - 1) for item in _items(value))
