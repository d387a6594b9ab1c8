"""Operands: the tensors that a dispatched operation takes and returns, and those that it writes into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor


def flat_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in the plain containers that operations take, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in cast("Sequence[Any]", value):
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, (list, tuple, dict)):
                yield from flat_tensors(item)
    elif isinstance(value, dict):
        for item in cast("dict[Any, Any]", value).values():
            yield from flat_tensors(item)


def written_tensors(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation writes into, read from its schema; none where it has no schema."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from flat_tensors(args[position] if position < len(args) else kwargs.get(argument.name))
