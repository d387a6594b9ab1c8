"""Snapshot of the plain attributes and hooks that a forward may change; puts them back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from layerprune.torch_internals import HOOK_DICTS

_PLAIN = (bool, int, float, str, type(None))
_PLAIN_TYPES = frozenset(_PLAIN)  # the same, told by one look
_MISSING = object()


class AttributeSnapshot:
    """The plain attributes of a model's modules at some moment, but for ``training``, and their hooks.

    A forward may install hooks and write a flag that they are there, as those of transformers do which are asked for
    hidden states: with the flag put back and the hooks left, the next one would install them once more.

    Args:
        model: the model, as it is at that moment.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = [(vars(module), _plain(module)) for module in model.modules()]
        self.hooks = {id(held): dict(held) for module in model.modules() for held in _registers(module) if held}
        self.moved: list[tuple[dict[str, Any], str, Any]] = []
        self.hooked: list[tuple[dict[int, Any], dict[int, Any]]] = []

    def settle(self) -> None:
        """Note which attributes differ now: whose, their names, and what they were; or that they were not there.

        So are the hooks that were added.
        """
        self.moved = [
            (held, key, value) for held, before in self.before for key, value in _differing(held, before).items()
        ]
        registers = ((held, self.hooks.get(id(held), {})) for one in self.model.modules() for held in _registers(one))
        self.hooked = [(held, before) for held, before in registers if held.keys() != before.keys()]

    def put_back(self) -> None:
        """Give the attributes that were noted the values that they had."""
        for held, key, value in self.moved:
            if value is _MISSING:
                held.pop(key, None)
            else:
                held[key] = value
        for register, before in self.hooked:
            if register.keys() != before.keys():
                register.clear()
                register.update(before)


def _differing(held: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What attributes were that differ now."""
    found = {key: value for key, value in before.items() if held.get(key, _MISSING) is not value}
    found |= {key: _MISSING for key, value in held.items() if key not in before and _is_plain(value)}
    found.pop("training", None)
    return found


def _registers(module: nn.Module) -> Iterator[dict[int, Any]]:
    """Where a module holds its hooks, and what tells of them how they are called."""
    held = vars(module)
    return (held[name] for name in HOOK_DICTS if name in held)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if type(value) in _PLAIN_TYPES or _is_plain(value)}


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN)


class Held:
    """What the attributes of a module, and of those inside it, hold at some moment; in containers, their items.

    Args:
        module: the module, as it is at that moment.
    """

    def __init__(self, module: nn.Module) -> None:
        self.before = [(vars(one), _contents(vars(one))) for one in module.modules()]

    def is_as_before(self) -> bool:
        """Whether all of it is still the very same."""
        return all(_are_same(_contents(held), before) for held, before in self.before)


def _contents(held: Mapping[str, Any]) -> list[Any]:
    """Names and values of attributes, with the items of containers."""
    found: list[Any] = [*held, *held.values()]
    for value in held.values():
        if isinstance(value, dict):
            found += [item for pair in cast("dict[Any, Any]", value).items() for item in pair]
        elif isinstance(value, (list, set, deque)):
            found += cast("list[Any]", value)
    return found


def _are_same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
