"""An undo log of changes, and writing of tensors all at once or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.torch_internals import registry_of

Undo = Callable[[], None]

_ABSENT = object()


class UndoLog:
    """Knows how to take back what edits have changed.

    A Ctrl-C may come between any two steps of Python. So each change is written down first: what has not been made by
    then is taken back without harm.
    """

    def __init__(self) -> None:
        self._undos: list[Undo] = []

    def note(self, undo: Undo) -> None:
        """Write down what takes the next change back: it does no harm before that change, nor a second time."""
        self._undos.append(undo)

    def set(self, held: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Set an entry, which keeps its place if there is one of that name."""
        old = held.get(key, _ABSENT)
        self.note(lambda: _put_back(held, key, old))
        held[key] = value

    def set_attribute(self, owner: object, name: str, value: Any) -> None:
        """Set an attribute that there is already."""
        old = getattr(owner, name)
        self.note(lambda: setattr(owner, name, old))
        setattr(owner, name, value)

    def keep(self, held: MutableMapping[str, Any]) -> None:
        """Write down all entries and their order, before some are taken out."""
        before = dict(held)

        def undo() -> None:
            held.clear()
            held.update(before)

        self.note(undo)

    def take_back(self) -> None:
        """Take everything back, the last change first; an interrupt on the way is passed on when that is done."""
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
    """Write values into a model's parameters and buffers; whatever happens meanwhile leaves all of them or none.

    Args:
        model: the model; its tensors stay the same objects. A parameter that a module has a place for and that is None
            becomes a new one.
        values: new values by name, of the tensors' shapes.
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
