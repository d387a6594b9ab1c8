"""One cached call of a module: arguments, output, and when another call may reuse the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from layerprune.tensors import same_bits
from layerprune.torch_internals import num_writes, storage_id

# Arguments that are known by their values.
_VALUES = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.Size, type(...))


class Leaf:
    """A tensor of the original's forward, as it was at some moment.

    The outcomes that took or returned it share the leaf. It is stale when the tensor was written into since.
    """

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.set(tensor)

    def set(self, tensor: Tensor) -> None:
        """Let it stand for a tensor as this is now."""
        self.tensor = tensor
        self.version = num_writes(tensor)

    @property
    def is_fresh(self) -> bool:
        """Whether the tensor is as it was."""
        return num_writes(self.tensor) == self.version and not vars(self.tensor)

    def has_form_of(self, tensor: Tensor) -> bool:
        """Whether a tensor has the same type, shape and memory format."""
        own = self.tensor
        return (
            own.shape == tensor.shape
            and own.dtype == tensor.dtype
            and own.device == tensor.device
            and own.stride() == tensor.stride()
        )


class _Node(NamedTuple):
    """A tuple, list or dict with leaves below it."""

    kind: type
    keys: tuple[Any, ...]
    items: tuple[Any, ...]


#: Makes a tensor's leaf.
LeafOf = Callable[[Tensor], Leaf]


class NotPlain(Exception):
    """A value is no tree of tensors and plain values."""


class CachedCall:
    """What a call took and returned, as trees with leaves for tensors.

    Args:
        args: what it took by position.
        kwargs: what it took by keyword.
        leaf_of: makes a tensor's leaf.

    Raises:
        NotPlain: it took an object that may change, or of which nobody knows what it holds.
    """

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any], leaf_of: LeafOf) -> None:
        self.leaf_of = leaf_of
        self.arguments: Any = _frozen((tuple(args), kwargs), leaf_of)
        self.around = ambient()
        self.result: Any = None
        self.lies_in_arguments = False

    def finish(self, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Note what was returned.

        Raises:
            NotPlain: what the call did is more than to return it, or it is no tree of tensors and plain values.
        """
        given = (tuple(args), kwargs)
        is_pure = self.matches(args, kwargs, by_value=False) and ambient() == self.around
        if not is_pure or not _containers(given).isdisjoint(_containers(out)):
            raise NotPlain
        memory = {storage_id(leaf.tensor) for leaf in _leaves(self.arguments)}
        self.result = _frozen(out, self.leaf_of)
        self.lies_in_arguments = any(storage_id(leaf.tensor) in memory for leaf in _leaves(self.result))

    def matches(self, args: Sequence[Any], kwargs: dict[str, Any], *, by_value: bool) -> bool:
        """Whether another call takes the same.

        Args:
            args: what it takes by position.
            kwargs: what it takes by keyword.
            by_value: whether to compare tensors that are not the very same ones, bit by bit; never done where the
                result lies in the memory of an argument.
        """
        by_value = by_value and not self.lies_in_arguments
        return ambient() == self.around and _matches(self.arguments, (tuple(args), kwargs), by_value)

    @property
    def leaves(self) -> list[Leaf]:
        """All leaves, of what it took and of what it returned."""
        return [*_leaves(self.arguments), *_leaves(self.result)]

    @property
    def is_fresh(self) -> bool:
        """Whether what it returned is still as it was."""
        return all(leaf.is_fresh for leaf in _leaves(self.result))

    def rebuilt(self) -> Any:
        """What it returned, the tensors themselves in new containers."""
        return _rebuilt(self.result)

    def renew(self, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> bool:
        """Let what a like call has returned take the place of what was written into; False where that is another."""
        return self.matches(args, kwargs, by_value=False) and _renewed(self.result, out)


def ambient() -> tuple[Any, ...]:
    """The modes of torch that a module's result depends on."""
    kinds = ("cpu", "cuda")
    casts = tuple(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in kinds)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), *casts


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but its values, which lie in memory that counts what is written into it."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
        and not tensor.is_inference()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and (not tensor.requires_grad or type(tensor) is nn.Parameter)
        and not vars(tensor)
    )


def _frozen(value: Any, leaf_of: LeafOf) -> Any:
    if isinstance(value, Tensor):
        if not is_plain(value):
            raise NotPlain
        return leaf_of(value)
    kind = cast("type[Any]", type(value))
    if kind in (tuple, list):
        return _Node(kind, (), tuple(_frozen(item, leaf_of) for item in value))
    if kind is dict:
        keys = tuple(value)
        if not all(isinstance(key, (str, int)) for key in keys):
            raise NotPlain
        return _Node(kind, keys, tuple(_frozen(item, leaf_of) for item in value.values()))
    if kind is slice:
        return _Node(kind, (), tuple(_frozen(item, leaf_of) for item in (value.start, value.stop, value.step)))
    if kind not in _VALUES:
        raise NotPlain
    return value


def _matches(form: Any, value: Any, by_value: bool) -> bool:
    if type(form) is Leaf:
        if not isinstance(value, Tensor) or not form.is_fresh:
            return False
        if value is form.tensor:
            return True
        return by_value and is_plain(value) and form.has_form_of(value) and same_bits(form.tensor, value)
    if type(form) is _Node:
        if type(value) is not form.kind:
            return False
        if form.kind is slice:
            value = (value.start, value.stop, value.step)
        elif form.kind is dict:
            if tuple(value) != form.keys:
                return False
            value = tuple(value.values())
        return len(value) == len(form.items) and all(
            _matches(inner, item, by_value) for inner, item in zip(form.items, value, strict=True)
        )
    return type(form) is type(value) and bool(form == value)


def _leaves(form: Any) -> Iterator[Leaf]:
    if type(form) is Leaf:
        yield form
    elif type(form) is _Node:
        for item in form.items:
            yield from _leaves(item)


def _rebuilt(form: Any) -> Any:
    if type(form) is Leaf:
        return form.tensor
    if type(form) is not _Node:
        return form
    items = [_rebuilt(item) for item in form.items]
    if form.kind is dict:
        return dict(zip(form.keys, items, strict=True))
    return slice(*items) if form.kind is slice else form.kind(items)


def _renewed(form: Any, value: Any) -> bool:
    if type(form) is Leaf:
        fits = isinstance(value, Tensor) and is_plain(value) and form.has_form_of(value)
        if fits and not (form.is_fresh and form.tensor is value):
            form.set(value)
        return fits
    if type(form) is not _Node or type(value) is not form.kind or form.kind is slice:
        return type(form) is not _Node and type(form) is type(value) and bool(form == value)
    items = cast("Sequence[Any]", tuple(value.values()) if form.kind is dict else value)
    same = len(items) == len(form.items) and (form.kind is not dict or tuple(value) == form.keys)
    return same and all(_renewed(inner, item) for inner, item in zip(form.items, items, strict=True))


def _containers(value: Any) -> set[int]:
    """The lists and dicts of a tree, which whoever gets them may change."""
    if type(value) in (tuple, list, dict):
        items = cast("Sequence[Any]", tuple(value.values()) if type(value) is dict else value)
        below = set[int]().union(*map(_containers, items))
        return below if type(value) is tuple else below | {id(value)}
    return set()
