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
        self.model = model
        self.before = [(vars(module), _plain(module)) for module in model.modules()]
        self.moved: list[tuple[dict[str, Any], str, Any]] = []

    def settle(self) -> None:
        """Note which attributes differ now: whose, their names, and what they were; or that they were not there."""
        self.moved = [
            (held, key, value) for held, before in self.before for key, value in _differing(held, before).items()
        ]

    def changed(self) -> frozenset[str]:
        """The first names of the modules of which an attribute differs now."""
        differing = {id(held) for held, before in self.before if _differing(held, before)}
        return frozenset(name for name, module in self.model.named_modules() if id(vars(module)) in differing)

    def put_back(self) -> None:
        """Give the attributes that were noted the values that they had."""
        for held, key, value in self.moved:
            if value is _MISSING:
                held.pop(key, None)
            else:
                held[key] = value


def _differing(held: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What attributes were that differ now."""
    found = {key: value for key, value in before.items() if held.get(key, _MISSING) is not value}
    found |= {key: _MISSING for key, value in held.items() if key not in before and _is_plain(value)}
    found.pop("training", None)
    return found


def _plain(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if type(value) in _PLAIN_TYPES or _is_plain(value)}


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN)
