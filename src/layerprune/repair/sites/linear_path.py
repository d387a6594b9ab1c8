"""Follows a tensor through layers that are linear, elementwise and its single reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from layerprune.channels import recorded_call
from layerprune.graph import Layer, LayerGraph, Refusal
from layerprune.repair.sites.permutation import Elements, Permutation
from layerprune.tensors import OpTraits, traits_of
from layerprune.torch_internals import BatchNorm, parameters_of


@dataclass(frozen=True, kw_only=True)
class LinearPath:
    """The layers from a tensor to the last value that is linear in it.

    Attributes:
        value: the last value.
        scales: batch norms or parameters, by name, that multiply the channels.
        moves: rearrangement of the elements; None if their order stays.
        has_sums: whether another tensor is added on the path.
        has_channels_last: whether the channels are the last dimension of ``value``, in order.
        shorter: the path without the final layers that only rearrange elements; None if there are none.
    """

    value: int
    scales: tuple[str, ...]
    moves: Permutation | None
    has_sums: bool
    has_channels_last: bool
    shorter: LinearPath | None = None


class PathGuide:
    """Follows tensors of a pruned model."""

    def __init__(self, graph: LayerGraph, modules: Mapping[str, nn.Module]) -> None:
        self.graph = graph
        self.modules = modules
        self.known: dict[Any, Any] = {}

    def follow(self, value: int, channel_dim: int, *, moving: bool = True) -> LinearPath:
        """Follow a tensor as long as its single reader is linear.

        Args:
            value: the tensor.
            channel_dim: dimension of its channels, negative.
            moving: whether to follow it through layers that rearrange elements.
        """
        elements = Elements(self.graph.values[value].shape, channel_dim, self.known)
        scales: list[str] = []
        has_sums = False
        shorter: LinearPath | None = None
        while (layer := self.only_reader(value)) is not None:
            after = self.graph.values[layer.outputs[0]].shape
            if self.hands_on(layer, value):
                adds = len(layer.operands) > 1
                has_sums, shorter = has_sums or adds, None if adds else shorter
                elements.shape = after
            elif factor := self.factor(layer, elements):
                scales.append(factor)
                shorter = None
            elif not moving or not self.moves(layer):
                break
            else:
                here = shorter or self.way(value, scales, elements, has_sums=has_sums)
                name = None if layer.is_module else (layer.function, repr(layer.literals))
                if not elements.move(self.call(layer), after, name):
                    break
                shorter = here
            value = layer.outputs[0]
        return replace(self.way(value, scales, elements, has_sums=has_sums), shorter=shorter)

    def way(self, value: int, scales: Sequence[str], elements: Elements, *, has_sums: bool) -> LinearPath:
        """The path to the present position of the elements."""
        return LinearPath(
            value=value,
            scales=tuple(scales),
            moves=elements.moves,
            has_sums=has_sums,
            has_channels_last=elements.are_channels_at(-1),
        )

    def only_reader(self, value: int) -> Layer | None:
        """The only reader of a value, if it reads the value once and has one output; else None."""
        readers = self.graph.readers.get(value, ())
        if value in self.graph.outputs or len(readers) != 1:
            return None
        layer = self.graph.layers[readers[0]]
        return layer if len(layer.outputs) == 1 and sum(value in read for read in layer.operands) == 1 else None

    def hands_on(self, layer: Layer, value: int) -> bool:
        """Whether a layer's output is the value, in the same order, possibly plus another tensor."""
        before, after = self.graph.values[value], self.graph.values[layer.outputs[0]]
        ops = [traits_of(function) for function in layer.functions]
        if before.storage == after.storage and before.storage not in layer.writes:
            # A view, also of a sum that lost its other operands, or of a block that still runs layers without effect.
            return _numel(before.shape) == _numel(after.shape) and all(map(_hands_on_in_order, ops))
        if ops and all(op.is_sum for op in ops):
            # The functions of a module hide their arguments: it may add its operand to itself, or scale one.
            plain = len(layer.functions) == 1 and len(layer.operands) > 1 if layer.is_module else True
            return plain and "alpha" not in layer.literals[1] and before.shape == after.shape
        if all(op.keeps_order for op in ops):
            return len(layer.operands) == 1 and not layer.params and _numel(before.shape) == _numel(after.shape)
        return False

    def factor(self, layer: Layer, elements: Elements) -> str:
        """Name of the batch norm or parameter if a layer multiplies channels by it; else empty."""
        data = [read for read in layer.operands if read]
        module = self.modules[layer.fqn] if layer.is_module else None
        after = self.graph.values[layer.outputs[0]].shape
        if after != elements.shape or len(data) != 1:
            return ""
        if isinstance(module, BatchNorm):
            return layer.fqn if module.running_var is not None and elements.are_channels_at(1 - len(after)) else ""
        is_product = bool(layer.functions) and all(traits_of(name).merge == "mul" for name in layer.functions)
        if len(layer.params) != 1 or not is_product:
            return ""
        name = layer.params[0]
        owner, _, key = name.rpartition(".")
        held = parameters_of(self.modules[owner]).get(key)
        if held is None or len(after) < 2 or held.dim() == 0 or held.dim() > len(after):
            return ""
        return name if held.shape[0] == held.numel() and elements.are_channels_at(-held.dim()) else ""

    def moves(self, layer: Layer) -> bool:
        """Whether a layer can do no more than rearrange the elements of its only operand."""
        ops = [traits_of(function) for function in layer.functions]
        once = layer.is_module or layer.nth >= 0
        return once and bool(ops) and all(map(_may_move, ops)) and len(layer.operands) == 1 and not layer.params

    def call(self, layer: Layer) -> Callable[[Tensor], Any]:
        if layer.is_module:
            return self.modules[layer.fqn].forward
        try:
            return recorded_call(layer)
        except Refusal:
            return _nothing


def _nothing(_: Tensor) -> None:
    """The call of an unknown function: it has no result."""


def _may_move(op: OpTraits) -> bool:
    """Whether numbered elements show the rearrangement that an op makes."""
    return op.channels == "moves" or op.keeps_order or (op.kind, op.channels) == ("reshape", "spatial")


def _hands_on_in_order(op: OpTraits) -> bool:
    """Whether an op that returns a view of its operand keeps the order of elements."""
    return op.keeps_order or op.kind not in ("reshape", "split", "other")


def _numel(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
