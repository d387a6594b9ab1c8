"""Undo log of changes, and all-or-nothing writes of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.torch_internals import registry_of

Undo = Callable[[], None]

_ABSENT = object()


class UndoLog:
    """Undoes changes of edits.

    A Ctrl-C may come between any two steps of Python. So each undo is recorded before its change, and an undo without
    its change has no effect.
    """

    def __init__(self) -> None:
        self._undos: list[Undo] = []

    def note(self, undo: Undo) -> None:
        """Record the undo of the next change; it must be harmless before that change, and when repeated."""
        self._undos.append(undo)

    def set(self, held: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Set an entry; an existing entry keeps its position."""
        old = held.get(key, _ABSENT)
        self.note(lambda: _put_back(held, key, old))
        held[key] = value

    def set_attribute(self, owner: object, name: str, value: Any) -> None:
        old = getattr(owner, name)
        self.note(lambda: setattr(owner, name, old))
        setattr(owner, name, value)

    def keep(self, held: MutableMapping[str, Any]) -> None:
        """Record all entries and their order, before some are removed."""
        before = dict(held)

        def undo() -> None:
            held.clear()
            held.update(before)

        self.note(undo)

    def take_back(self) -> None:
        """Undo all changes, the last one first; an interrupt is raised again after that."""
        try:
            self._take_back()
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        while self._undos:
            self._undos[-1]()
            self._undos.pop()


def _put_back(held: MutableMapping[str, Any], key: str, old: Any) -> None:
    if old is _ABSENT:
        held.pop(key, None)
    else:
        held[key] = old


def write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write values into a model's parameters and buffers, all or none.

    Args:
        model: the model; its tensors stay the same objects. A parameter that is None becomes a new one.
        values: new values by name, with the tensors' shapes.
    """
    before: list[tuple[nn.Module, str, Tensor | None, Tensor | None]] = []
    try:
        with torch.no_grad():
            for name, value in values.items():
                owner, _, key = name.rpartition(".")
                module = model.get_submodule(owner)
                held = registry_of(module, key)[key]
                before.append((module, key, held, None if held is None else held.detach().clone()))
                if held is None:
                    module.register_parameter(key, nn.Parameter(value.clone()))
                else:
                    held.copy_(value)
    except BaseException:
        with torch.no_grad():
            for module, key, held, old in before:
                if held is None or old is None:
                    module.register_parameter(key, None)
                else:
                    held.copy_(old)
        raise
