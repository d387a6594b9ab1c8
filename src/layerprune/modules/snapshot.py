"""Snapshot of plain attributes and hooks of modules, which a forward may change; restores them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from layerprune.torch_internals import HOOK_DICTS

_PLAIN = (bool, int, float, str, type(None))
_PLAIN_TYPES = frozenset(_PLAIN)  # the same for a fast test
_MISSING = object()


class AttributeSnapshot:
    """Plain attributes of a model's modules, without ``training``, and their hooks.

    A forward may install hooks and set a flag for them, as transformers do for hidden states. If the flag was restored
    without the hooks, the next forward would install them again.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = [(vars(module), _plain(module)) for module in model.modules()]
        self.hooks = {id(held): dict(held) for module in model.modules() for held in _registers(module) if held}
        self.moved: list[tuple[dict[str, Any], str, Any]] = []
        self.hooked: list[tuple[dict[int, Any], dict[int, Any]]] = []

    def settle(self) -> None:
        """Record the attributes and hooks that differ now, for :meth:`put_back`."""
        self.moved = [
            (held, key, value) for held, before in self.before for key, value in _differing(held, before).items()
        ]
        registers = ((held, self.hooks.get(id(held), {})) for one in self.model.modules() for held in _registers(one))
        self.hooked = [(held, before) for held, before in registers if held.keys() != before.keys()]

    def put_back(self) -> None:
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
    """Former values of the attributes that differ now."""
    found = {key: value for key, value in before.items() if held.get(key, _MISSING) is not value}
    found |= {key: _MISSING for key, value in held.items() if key not in before and _is_plain(value)}
    found.pop("training", None)
    return found


def _registers(module: nn.Module) -> Iterator[dict[int, Any]]:
    """The registries of a module's hooks and of their options."""
    held = vars(module)
    return (held[name] for name in HOOK_DICTS if name in held)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if type(value) in _PLAIN_TYPES or _is_plain(value)}


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN)


class Held:
    """Attribute values of a module tree, by identity; also the items of containers."""

    def __init__(self, module: nn.Module) -> None:
        self.before = [(vars(one), _contents(vars(one))) for one in module.modules()]

    def is_as_before(self) -> bool:
        """Whether all values and items are still the same objects."""
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
