"""Normalizes the pruner's options, or refuses them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from layerprune.errors import ArgumentError, UnknownNameError
from layerprune.graph import Group, LayerInfo
from layerprune.modules import names_by_module

#: An item of ``protect``: a pattern of dotted names, a group, a layer, or a module of the model.
Protected: TypeAlias = str | Group | LayerInfo | nn.Module

_MOST_SEED = 2**63 - 1


def patterns_of(protect: Protected | Iterable[Protected] | None, model: nn.Module) -> tuple[str, ...]:
    """The patterns of dotted names that stay.

    Raises:
        ArgumentError: ``protect`` is of an unknown form.
        UnknownNameError: a module is not one of the model's.
    """
    if protect is None:
        return ()
    one = isinstance(protect, (str, bytes, Group, LayerInfo, nn.Module)) and not _holds_modules(protect)
    try:
        items: list[Any] = [protect] if one else list(protect)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise ArgumentError(_not_taken(protect)) from None
    return tuple(_pattern(item, model) for item in items)


def _holds_modules(protect: object) -> bool:
    """Whether ``protect`` is a list of modules, such as ``[*model.blocks[:2]]``, and not a module to protect."""
    return isinstance(protect, nn.ModuleList)


def _pattern(item: object, model: nn.Module) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, (Group, LayerInfo)):
        return item.name
    if isinstance(item, nn.Module):
        names = names_by_module(model).get(id(item))
        if not names or not names[0]:
            raise UnknownNameError(f"protect holds a {type(item).__name__} that is no module inside the model")
        return names[0]
    raise ArgumentError(_not_taken(item))


def _not_taken(item: object) -> str:
    return (
        f"protect holds {item!r:.60} ({type(item).__name__}): give patterns of dotted names, as "
        "protect=['layer1*', 'head'], or modules of the model"
    )


@dataclass(frozen=True)
class DataName:
    """Stands for data that the user gave, by the name that code shows for them."""

    name: str

    def __repr__(self) -> str:
        return self.name


_DATA = {"example_inputs": DataName("example_inputs"), "calibration": DataName("batches"), "loss": DataName("loss")}


def settings_of(call: Callable[..., object], given: Mapping[str, object]) -> dict[str, object]:
    """The keyword arguments of a call that differ from their defaults, but for the progress bar."""
    found: dict[str, object] = {}
    for name, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name == "progress":
            continue
        if name in _DATA:
            found |= {} if given[name] is None else {name: _DATA[name]}
        elif given[name] != parameter.default:
            found[name] = given[name]
    return found


def checked_seed(seed: object) -> int:
    """A seed as a plain number.

    Raises:
        ArgumentError: it is no whole number from 0 to 2**63 - 1.
    """
    try:
        number = operator.index(seed)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, RuntimeError):  # torch's own errors for tensors
        number = -1
    if not 0 <= number <= _MOST_SEED:
        raise ArgumentError(f"seed is {seed!r:.60}; give a whole number of 0 or more")
    return number
