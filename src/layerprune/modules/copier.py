"""Copies attributes of modules other than tensors and modules: containers, objects, closures."""

from __future__ import annotations

import copy
from types import CellType, FunctionType, MethodType
from typing import Any

import torch

#: Types that are never copied.
ATOMS = (int, float, bool, str, bytes, complex, type(None), type, torch.dtype, torch.device, torch.Size)
#: The same for a fast test: nearly all attributes of modules have exactly these types.
PLAIN_TYPES = frozenset(ATOMS)


class Copier:
    """Copies the attributes of a module tree.

    Args:
        apart: whether to copy lists and dicts in closures of functions, too.

    Attributes:
        memo: ``id`` → copy, as for ``copy.deepcopy``; the caller adds modules and tensors first.
    """

    def __init__(self, *, apart: bool) -> None:
        self.apart = apart
        self.memo: dict[int, Any] = {}

    def copy(self, value: Any) -> Any:
        """Copy an attribute; a value that cannot be copied is shared."""
        kind = type(value)
        if kind in PLAIN_TYPES or isinstance(value, ATOMS):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        if kind is FunctionType:
            return self.function(value)
        if kind is dict or kind.__name__ == "OrderedDict":
            # Mostly a module's own registries: deepcopy is slow on hundreds of small empty dicts.
            same = kind()
            self.memo[id(value)] = same
            for key, item in value.items():
                same[key] = self.copy(item)
            return same
        if kind is tuple and all(type(item) in PLAIN_TYPES for item in value):
            return value
        if kind is set and all(type(item) in PLAIN_TYPES for item in value):
            return self.memo.setdefault(id(value), set(value))
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:  # deepcopy runs the user's code, which may raise anything; a shared value is safe
            return value

    def function(self, function: FunctionType) -> FunctionType:
        """Copy a function whose closure holds copied modules; return other functions themselves.

        ``copy.deepcopy`` shares functions: a hook, or a forward wrapped by ``torch.compile``, would still use
        modules of the original.
        """
        old = function.__closure__ or ()
        cells = tuple(CellType() if _has_value(cell) else cell for cell in old)
        made = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        self.memo[id(function)] = made  # because the function may call itself
        changed = False
        for cell, before in zip(cells, old, strict=True):
            if cell is not before:
                cell.cell_contents = self.held(before.cell_contents)
                changed |= cell.cell_contents is not before.cell_contents
        if defaults := function.__defaults__:
            made.__defaults__ = tuple(map(self.held, defaults))
            changed |= any(a is not b for a, b in zip(made.__defaults__, defaults, strict=True))
        for key, value in vars(function).items():
            vars(made)[key] = self.held(value)
            changed |= vars(made)[key] is not value
        if not changed:
            self.memo[id(function)] = function
            return function
        for key in ("__kwdefaults__", "__qualname__", "__doc__", "__module__", "__annotations__"):
            setattr(made, key, getattr(function, key))
        return made

    def held(self, value: Any) -> Any:
        """The value in a function's copy."""
        if id(value) in self.memo and not isinstance(value, ATOMS):
            return self.memo[id(value)]
        if isinstance(value, FunctionType):
            return self.function(value)
        if isinstance(value, MethodType):
            held = self.held(value.__self__)
            return value if held is value.__self__ else MethodType(value.__func__, held)
        return self.copy(value) if self.apart and type(value) in (dict, list, set) else value


def _has_value(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
