"""Tensors that a forward uses though no call passes them, and arguments that a call writes into."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from layerprune.tensors import attributes_of

_STILL = (int, float, complex, str, bytes, type(None), tuple, frozenset, type, Tensor, nn.Module)
_CONTAINERS = (list, dict, set, deque)


class ImplicitInputs:
    """The tensors that each running forward got by calls: its arguments, and the results of its own calls.

    Others came by a hook, an attribute, or a list or context that modules share. Tensors are known by their ids; a
    tensor with the reused id of a freed one is missed.

    Attributes:
        has_written: whether a call has changed a list or an object among its arguments, which other modules may read.
    """

    def __init__(self) -> None:
        self._handed: list[set[int]] = []
        self._given: list[list[tuple[Any, Any]]] = []
        self.has_written = False

    def enter(self, args: Iterable[Any], tensors: Iterable[Tensor]) -> list[Tensor]:
        """Start a module's call; returns the tensors among its arguments that its caller did not have."""
        listed = list(tensors)
        found = self.read(listed)
        self._handed.append({id(tensor) for tensor in listed})
        self._given.append([(value, _contents(value)) for value in args if not isinstance(value, _STILL)])
        return found

    def read(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """The tensors that the running forward does not have."""
        if not self._handed:
            return []
        return [tensor for tensor in tensors if id(tensor) not in self._handed[-1]]

    def made(self, tensors: Iterable[Tensor]) -> None:
        """Add a call's results to the tensors of the running forward."""
        if self._handed:
            self._handed[-1].update(map(id, tensors))

    def leave(self) -> None:
        self._handed.pop()
        self.has_written |= any(_contents(value) != before for value, before in self._given.pop())


def _contents(value: Any, depth: int = 3) -> Any:
    """The contents of a container or an object, by identity."""
    if isinstance(value, _STILL) or depth == 0:
        return id(value)
    held = attributes_of(value)
    items: Iterable[Any] = ()
    if isinstance(value, _CONTAINERS):
        items = value.values() if isinstance(value, dict) else value
    return type(value), tuple(_contents(item, depth - 1) for item in (*items, *held.values()))
