"""Plain attributes of modules: flags, counters and sizes that a forward may change, and how to put them back."""

from __future__ import annotations

from typing import Any

from torch import nn

_PLAIN = (bool, int, float, str, type(None))
_PLAIN_TYPES = frozenset(_PLAIN)  # the same, told by one look
_MISSING = object()


class Attributes:
    """The plain attributes of a model's modules at some moment, but for ``training``.

    Args:
        model: the model, as it is at that moment.
    """

    def __init__(self, model: nn.Module) -> None:
        self.before = [(vars(module), _plain(module)) for module in model.modules()]
        self.moved: list[tuple[dict[str, Any], str, Any]] = []

    def settle(self) -> None:
        """Note which attributes differ now: whose, their names, and what they were; or that they were not there."""
        found: list[tuple[dict[str, Any], str, Any]] = []
        for held, before in self.before:
            found += [(held, key, value) for key, value in before.items() if held.get(key, _MISSING) is not value]
            found += [(held, key, _MISSING) for key, value in held.items() if key not in before and _is_plain(value)]
        self.moved = [(held, key, value) for held, key, value in found if key != "training"]

    def put_back(self) -> None:
        """Give the attributes that were noted the values that they had."""
        for held, key, value in self.moved:
            if value is _MISSING:
                held.pop(key, None)
            else:
                held[key] = value


def _plain(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if type(value) in _PLAIN_TYPES or _is_plain(value)}


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN)
