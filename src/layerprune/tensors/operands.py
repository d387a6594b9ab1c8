"""The tensors that an operation takes, returns and writes into."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from layerprune.torch_internals import schema_of

# Operations that write running statistics in training without declaring it in their schema → the argument positions of
# these statistics and of the training flag.
_UNDECLARED = {
    "aten::native_batch_norm": ((3, 4), 5),
    "aten::cudnn_batch_norm": ((3, 4), 5),
    "aten::miopen_batch_norm": ((3, 4), 5),
    "aten::_batch_norm_impl_index": ((3, 4), 5),
}


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
        elif isinstance(item, (list, tuple, dict)):  # checked before the call, as most items hold no tensors
            _collect(item, found)


def form_of(value: Any, leaf: Callable[[Any], Hashable]) -> Hashable:
    """Describe a call's arguments: containers by their types, all else by ``leaf``."""
    if isinstance(value, (list, tuple)):
        return (type(value), *(form_of(item, leaf) for item in cast("Sequence[Any]", value)))
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return (type(value), *((str(key), form_of(item, leaf)) for key, item in items))
    if isinstance(value, slice):
        return slice, *(leaf(part) for part in (value.start, value.stop, value.step))
    return leaf(value)


def written_tensors(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation writes into, by its schema; none without a schema."""
    schema = schema_of(func)
    if schema is None:
        return
    if schema.name in _UNDECLARED:
        places, trains = _UNDECLARED[schema.name]
        if args[trains]:
            yield from flat_tensors([args[place] for place in places])
        return
    if not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from flat_tensors(args[position] if position < len(args) else kwargs.get(argument.name))
