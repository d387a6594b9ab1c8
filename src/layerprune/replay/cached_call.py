"""One cached call of a module: arguments, output, and when another call may reuse the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from layerprune.tensors import OutputTree, same_bits
from layerprune.torch_internals import num_writes, storage_id

_L = TypeVar("_L")

# Types of arguments that are compared by value.
_VALUES = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.Size, type(...))


class Leaf:
    """A tensor of the original's forward, with its version; stale once the tensor was written into.

    All cached calls that took or returned the tensor share the leaf.
    """

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.set(tensor)

    def set(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.version = num_writes(tensor)

    @property
    def is_fresh(self) -> bool:
        return num_writes(self.tensor) == self.version and not vars(self.tensor)

    def has_form_of(self, tensor: Tensor) -> bool:
        own = self.tensor
        return (
            own.shape == tensor.shape
            and own.dtype == tensor.dtype
            and own.device == tensor.device
            and own.stride() == tensor.stride()
        )


#: Makes a tensor's leaf.
LeafOf = Callable[[Tensor], Leaf]


class NotPlain(Exception):
    """A value is not a tree of tensors and plain values."""


class CachedCall:
    """The arguments and the output of a call, as trees with leaves for tensors.

    Raises:
        NotPlain: an argument is an object that may change, or whose parts are not known.
    """

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any], leaf_of: LeafOf) -> None:
        self.leaf_of = leaf_of
        self.arguments = _flat((tuple(args), kwargs), self.leaf)
        self.around = ambient()
        self.result: OutputTree[Leaf] = OutputTree(kind="tuple")
        self.lies_in_arguments = False

    def leaf(self, tensor: Tensor) -> Leaf:
        if not is_plain(tensor):
            raise NotPlain
        return self.leaf_of(tensor)

    def finish(self, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Record the output of the call.

        Raises:
            NotPlain: the call has side effects, or its output is not a tree of tensors and plain values.
        """
        given = (tuple(args), kwargs)
        is_pure = self.matches(args, kwargs, by_value=False) and ambient() == self.around
        if not is_pure or not _containers(given).isdisjoint(_containers(out)):
            raise NotPlain
        memory = {storage_id(leaf.tensor) for leaf in self.arguments.leaves()}
        self.result = _flat(out, self.leaf)
        self.lies_in_arguments = any(storage_id(leaf.tensor) in memory for leaf in self.result.leaves())

    def matches(self, args: Sequence[Any], kwargs: dict[str, Any], *, by_value: bool) -> bool:
        """Whether another call takes equal arguments under the same torch modes.

        With ``by_value`` other tensor objects are compared bit by bit, unless the output lies in the memory of an
        argument.
        """
        by_value = by_value and not self.lies_in_arguments
        if ambient() != self.around:
            return False
        pairs = _pairs(self.arguments, (tuple(args), kwargs))
        return pairs is not None and all(_matches(leaf, tensor, by_value) for leaf, tensor in pairs)

    @property
    def leaves(self) -> list[Leaf]:
        return [*self.arguments.leaves(), *self.result.leaves()]

    @property
    def is_fresh(self) -> bool:
        return all(leaf.is_fresh for leaf in self.result.leaves())

    def rebuilt(self) -> Any:
        return self.result.build(lambda leaf: leaf.tensor)

    def renew(self, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> bool:
        """Replace stale leaves of the output by those of an equal call; False where the output has another form."""
        pairs = _pairs(self.result, out) if self.matches(args, kwargs, by_value=False) else None
        if pairs is None or not all(is_plain(tensor) and leaf.has_form_of(tensor) for leaf, tensor in pairs):
            return False
        for leaf, tensor in pairs:
            if not (leaf.is_fresh and leaf.tensor is tensor):
                leaf.set(tensor)
        return True


def ambient() -> tuple[Any, ...]:
    """The modes of torch that a module's output depends on."""
    kinds = ("cpu", "cuda")
    casts = tuple(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in kinds)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), *casts


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is only its values, in memory that counts writes."""
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


def _flat(value: Any, leaf: Callable[[Tensor], _L]) -> OutputTree[_L]:
    """The tree of a value of plain containers; raises NotPlain for others."""
    tree = OutputTree.of(value, leaf, _constant)
    if any(node.kind == "record" for node in tree.nodes()):
        raise NotPlain
    return tree


def _constant(value: Any) -> OutputTree[Any]:
    parts = (value.start, value.stop, value.step) if type(value) is slice else (value,)
    if any(type(part) not in _VALUES for part in parts):
        raise NotPlain
    return OutputTree.constant(value)


def _pairs(form: OutputTree[Leaf], value: Any) -> list[tuple[Leaf, Tensor]] | None:
    """Each leaf with the tensor in its place in a value; None where the value has another form."""
    try:
        other = _flat(value, lambda tensor: tensor)
    except NotPlain:
        return None
    if form.map(lambda leaf: None) != other.map(lambda tensor: None):
        return None
    return list(zip(form.leaves(), other.leaves(), strict=True))


def _matches(leaf: Leaf, tensor: Tensor, by_value: bool) -> bool:
    if not leaf.is_fresh or tensor is leaf.tensor:
        return leaf.is_fresh
    return by_value and is_plain(tensor) and leaf.has_form_of(tensor) and same_bits(leaf.tensor, tensor)


def _containers(value: Any) -> set[int]:
    """The ids of the lists and dicts of a tree, which a caller may change."""
    if type(value) in (tuple, list, dict):
        items = cast("Sequence[Any]", tuple(value.values()) if type(value) is dict else value)
        below = set[int]().union(*map(_containers, items))
        return below if type(value) is tuple else below | {id(value)}
    return set()
