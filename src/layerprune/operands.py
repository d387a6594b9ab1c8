"""Operands: the tensors that a dispatched operation takes and returns, and those that it writes into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor


def flat_tensors(value: Any) -> list[Tensor]:
    """Return the tensors in the plain containers that operations take, in order."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    if isinstance(value, (list, tuple, dict)):
        _collect(value, found)
    return found


def _collect(container: Any, found: list[Tensor]) -> None:
    items = cast("dict[Any, Any]", container).values() if isinstance(container, dict) else container
    for item in cast("Sequence[Any]", items):
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple, dict)):  # what else there may be, most of all, holds none
            _collect(item, found)


def written_tensors(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation writes into, read from its schema; none where it has no schema."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from flat_tensors(args[position] if position < len(args) else kwargs.get(argument.name))
