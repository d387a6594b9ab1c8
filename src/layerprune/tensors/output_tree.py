"""Output structure: an output written down as a structure, and built again around what is left of it.

The form of a structure is :data:`layerprune.graph.Structure`. Records, which are named tuples and dataclasses, are
built of classes that are loaded already, and past their constructors: a plan from elsewhere runs no code.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from layerprune.errors import DroppedTensorError
from layerprune.tensors.containers import tensors_in


def described(out: Any, read: Callable[[Tensor], tuple[int, ...]]) -> tuple[Any, tuple[int, ...]]:
    """Write an output down.

    Args:
        out: what a forward returned.
        read: the values that a tensor stands for.

    Returns:
        The structure, with numbers of values at its leaves, and these in order.
    """
    if isinstance(out, Tensor):
        values = read(out)
        return (values[0] if len(values) == 1 else None), values[-1:]
    kind, items = parts_of(out)
    if kind:
        found = {key: described(item, read) for key, item in items.items()}
        inner: Any = {key: structure for key, (structure, _) in found.items()}
        if kind in ("tuple", "list"):
            inner = list(inner.values())
        elif kind == "record":
            inner = {"class": [type(out).__module__, type(out).__qualname__], "fields": inner}
        return {kind: inner}, tuple(v for _, values in found.values() for v in values)
    if out is None or isinstance(out, (bool, int, float, str)):
        return {"value": out}, ()
    return {"opaque": type(out).__name__}, tuple(values[-1] for t in tensors_in(out) if (values := read(t)))


def parts_of(out: Any) -> tuple[str, dict[Any, Any]]:
    """The parts of an output that can be built again, by key, and what kind it is: empty where it is none."""
    if type(out) in (tuple, list):
        return type(out).__name__, dict(enumerate(out))
    if type(out) is dict:
        whole = cast("dict[Any, Any]", out)
        return ("dict", whole) if all(isinstance(key, str) for key in whole) else ("", {})
    names = field_names(cast("type[Any]", type(out)))
    if names is None or record_class(type(out).__module__, type(out).__qualname__) is not type(out):
        return "", {}
    held = getattr(out, "__dict__", None)
    if held and set(held) != set(names):  # more than its fields: these would be lost
        return "", {}
    return "record", {name: getattr(out, name, None) for name in names}


def field_names(cls: type) -> tuple[str, ...] | None:
    """The fields of a named tuple or a dataclass; None for other classes."""
    if issubclass(cls, tuple):
        names = getattr(cls, "_fields", None)
        return tuple(cast("Sequence[str]", names)) if isinstance(names, tuple) else None
    if not dataclasses.is_dataclass(cls) or issubclass(cls, (Mapping, Tensor, nn.Module)):
        return None
    return tuple(field.name for field in dataclasses.fields(cls))


def record_class(module: str, qualname: str) -> type | None:
    """The class of a name, where it is loaded and is one of records."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None  # no getattr: that may import
    return found if isinstance(found, type) and field_names(found) is not None else None


def pick(position: int | None, keyword: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return one argument of a call, by its name or its position."""
    if keyword is not None and keyword in kwargs:
        return kwargs[keyword]
    if position is not None and position < len(args):
        return args[position]
    name = position if keyword is None else f"'{keyword}'"
    raise DroppedTensorError(f"a removed module is called without argument {name}, which it hands on")


def build(
    structure: Any, token: Any, argument: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Build an output of its structure.

    Args:
        structure: the structure.
        token: what stands at its leaves ``"tensor"``.
        argument: what stands at its leaves ``"argument"``.
        args: the call's arguments by position, of which others may be handed on.
        kwargs: those by keyword.

    Raises:
        DroppedTensorError: there is no such structure, or a record of no class that is loaded.
    """

    def inside(item: Any) -> Any:
        return build(item, token, argument, args, kwargs)

    if structure == "tensor":
        return token
    if structure == "argument":
        return argument
    if isinstance(structure, dict):
        ((kind, inner),) = cast("dict[str, Any]", structure).items()
        if kind == "argument":
            position, keyword = inner
            return pick(position, keyword, args, kwargs or {})
        if kind in ("tuple", "list"):
            items = [inside(item) for item in inner]
            return tuple(items) if kind == "tuple" else items
        if kind == "dict":
            return {key: inside(item) for key, item in inner.items()}
        if kind == "record":
            return _record(inner["class"], {name: inside(item) for name, item in inner["fields"].items()})
        if kind == "value":
            return inner
    raise DroppedTensorError(f"an output structure of this form cannot be rebuilt: {structure!r}")


def _record(name: Sequence[str], fields: Mapping[str, Any]) -> Any:
    cls = record_class(*name)
    if cls is None or field_names(cls) != tuple(fields):
        raise DroppedTensorError(f"a removed module returned a {name[1]}, and {name[0]} has no such record loaded")
    if issubclass(cls, tuple):
        return tuple.__new__(cls, tuple(fields.values()))
    made = object.__new__(cls)
    for key, value in fields.items():
        object.__setattr__(made, key, value)
    return made
