"""Finds the input channels that layers behind a concat lose when one of its operands goes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from torch import nn

from layerprune.channels import index_tracking as rearrange
from layerprune.channels.index_tracking import ChannelGap, Moved
from layerprune.channels.rules import slice_layer
from layerprune.edits import Slice
from layerprune.graph import Layer, LayerGraph, Refusal, RefusalCode
from layerprune.tensors import is_custom, traits_of


class ChannelTrace:
    """Follows missing channels from concats to the transforms that read them.

    Dead layers need no slices. ``substitutes`` maps values to their replacements in simultaneous removals; the readers
    of ``projected`` values get new weights instead of slices.
    """

    def __init__(
        self,
        graph: LayerGraph,
        modules: Mapping[str, nn.Module],
        dead: frozenset[int],
        substitutes: Mapping[int, int] | None = None,
        projected: Collection[int] = (),
    ) -> None:
        self.graph = graph
        self.substitutes = {y: s for y, s in (substitutes or {}).items() if y not in projected}
        self.modules = modules
        self.dead = dead
        self.gaps: dict[int, ChannelGap] = {}
        self.cuts: dict[tuple[str, str], tuple[ChannelGap, int]] = {}
        self.moved: list[Moved] = []
        self.whose = ""  # for messages: the dropped branch, named by its last layer

    def run(self, dropped: Iterable[tuple[int, int]]) -> list[Slice]:
        """Return the slices for dropped (concat layer, value) pairs; refuses a reader that cannot lose channels."""
        gone: dict[int, set[int]] = {}
        for merge, value in dropped:
            gone.setdefault(merge, set()).add(value)
        made = dict.fromkeys(self.graph.name_of(value) for value in sorted(set().union(*gone.values())))
        self.whose = f"the channels of {', '.join(map(repr, made))}"
        for layer in self.graph.layers[min(gone, default=0) :]:
            if layer.index in self.dead or layer.index not in self.graph.live:
                continue
            if layer.index in gone:
                self.concat(layer, gone[layer.index])
            elif any(v in self.gaps for read in self.operands(layer) for v in read):
                self.follow(layer)
        if any(self.resolve(v) in self.gaps for v in self.graph.outputs):
            raise Refusal(RefusalCode.REACHES_OUTPUT, channels=self.whose)
        self.check_calls()
        return [Slice(fqn=fqn, side=side, dropped=gap.indices) for (fqn, side), (gap, _) in self.cuts.items()]  # type: ignore[arg-type]

    def resolve(self, value: int) -> int:
        while value in self.substitutes:
            value = self.substitutes[value]
        return value

    def operands(self, layer: Layer) -> list[tuple[int, ...]]:
        return [tuple(self.resolve(v) for v in read) for read in layer.operands]

    def follow(self, layer: Layer) -> None:
        reads = [read[0] for read in self.operands(layer) if len(read) == 1]
        if any(len(read) > 1 and any(v in self.gaps for v in read) for read in self.operands(layer)):
            raise Refusal(RefusalCode.CHANNELS_WRITTEN, layer.name, channels=self.whose)
        value = next(v for v in reads if v in self.gaps)
        gap = self.gaps[value]
        name = layer.function or (layer.functions[0] if len(set(layer.functions)) == 1 else "")
        alone = len(reads) == 1 or len({*reads}) == 1
        op = traits_of(name)
        if op.merge == "cat":
            self.concat(layer, set())
        elif layer.params and alone and self.slice_params(layer, value):
            return
        elif layer.params:
            raise self.refusal(layer)
        elif (
            (layer.is_module and not layer.functions)
            or op.channels == "elementwise"
            or (op.channels == "spatial" and gap.dim == 1)
        ):
            self.pass_on(layer, gap)
        elif op.is_pointwise:
            self.pointwise(layer, reads)
        elif alone and all(traits_of(function).channels == "moves" for function in layer.functions):
            self.rearrange(layer, value)
        elif alone and op.channels in ("over", "reduction"):
            self.reduce(layer, value)
        else:
            raise self.refusal(layer)

    def refusal(self, layer: Layer) -> Refusal:
        """Why a layer without a channel rule cannot lose channels."""
        if layer.kind == "normalization":
            return Refusal(RefusalCode.NORMALIZES_ACROSS, layer.name, type=layer.type_name)
        return Refusal(RefusalCode.CANNOT_LOSE_SOME, layer.name, channels=self.whose, type=layer.type_name)

    def pass_on(self, layer: Layer, gap: ChannelGap) -> None:
        for value in layer.outputs:
            shape = self.graph.values[value].shape
            if len(shape) <= gap.dim or shape[gap.dim] != len(gap.missing):
                code = RefusalCode.CHANNELS_NOT_FOLLOWED
                raise Refusal(code, layer.name, channels=self.whose, type=layer.type_name)
            self.gaps[value] = gap

    def concat(self, layer: Layer, gone: set[int]) -> None:
        """Join the gaps of a concat's operands, each shifted to its place."""
        dim = self.concat_dim(layer)
        missing: list[np.ndarray] = []
        for original, read in zip(layer.operands, self.operands(layer), strict=True):
            if len(read) != 1:
                raise Refusal(RefusalCode.OPERAND_WRITTEN, layer.name)
            shape = self.graph.values[read[0]].shape
            if dim >= len(shape):
                raise Refusal(RefusalCode.JOINS_OTHER_SHAPES, layer.name)
            size = shape[dim]
            gap = self.gaps.get(read[0])
            if gap is not None and gap.dim != dim:
                raise Refusal(RefusalCode.JOINS_ANOTHER_DIMENSION, layer.name)
            missing.append(np.full(size, original[0] in gone) | (gap.missing if gap is not None else False))
        self.gaps[layer.outputs[0]] = ChannelGap(dim, np.concatenate(missing))

    def concat_dim(self, layer: Layer) -> int:
        """The dimension that a concat joins, counted from the front."""
        args, kwargs = layer.literals
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
        if layer.is_module or is_custom(layer.function or "") or not isinstance(dim, int):
            return _joined_dim(self.graph, layer)
        return dim % len(self.graph.values[layer.outputs[0]].shape)

    def pointwise(self, layer: Layer, reads: list[int]) -> None:
        """Elementwise ops: every operand that has the channels must miss the same ones."""
        gap = next(self.gaps[v] for v in reads if v in self.gaps)
        for value in reads:
            shape = self.graph.values[value].shape
            other = self.gaps.get(value)
            dim = gap.dim - (len(self.graph.values[layer.outputs[0]].shape) - len(shape))
            broadcast = dim < 0 or shape[dim] == 1
            same = other is not None and other.dim == gap.dim and bool(np.array_equal(other.missing, gap.missing))
            if not broadcast and not same:
                raise Refusal(RefusalCode.JOINS_WHOLE_TENSOR, layer.name, channels=self.whose)
        self.pass_on(layer, gap)

    def rearrange(self, layer: Layer, value: int) -> None:
        """Views, permutations and splits: numbered elements show the new places of channels."""
        gap, shape = self.gaps[value], self.graph.values[value].shape
        if layer.nth < 0:
            raise self.refusal(layer)
        call = self.modules[layer.fqn].forward if layer.is_module else rearrange.recorded_call(layer)
        after = rearrange.follow(layer, call, gap, shape)
        if len(after) != len(layer.results) or not {*layer.outputs} <= {*layer.results}:
            raise self.refusal(layer)
        self.moved.append(Moved(layer, shape, gap, after))
        self.gaps.update({v: found for v, found in zip(layer.results, after, strict=True) if found is not None})

    def reduce(self, layer: Layer, value: int) -> None:
        """Reductions and softmax, over dimensions other than the channels'."""
        gap, dims = self.gaps[value], len(self.graph.values[value].shape)
        over = _dims_over(layer, dims)
        out = self.graph.values[layer.outputs[0]].shape
        if over is None or gap.dim in over or len(layer.results) > 1:
            raise self.refusal(layer)
        dim = gap.dim if len(out) == dims else gap.dim - sum(d < gap.dim for d in over)
        self.pass_on(layer, ChannelGap(dim, gap.missing))

    def slice_params(self, layer: Layer, value: int) -> bool:
        """Slice a layer of torch, or a custom layer with the same functions; False where its channels are not known."""
        gap, dims = self.gaps[value], len(self.graph.values[value].shape)
        found = slice_layer(self.modules[layer.fqn], layer, gap, dims)
        if found is None:
            return False
        side, behind = found
        if side:
            self.cut(layer, side, gap)
        if behind is not None:
            self.pass_on(layer, behind)
        return True

    def cut(self, layer: Layer, side: str, gap: ChannelGap) -> None:
        for name in layer.params:
            users = self.graph.param_users[self.graph.param_ids[name]]
            if any(self.graph.layers[u].fqn != layer.fqn for u in users):
                raise Refusal(RefusalCode.WEIGHT_TIED, layer.fqn, param=name)
        known = self.cuts.get((layer.fqn, side))
        if known is not None and not np.array_equal(known[0].missing, gap.missing):
            raise Refusal(RefusalCode.CALLS_MISS_OTHERS, layer.fqn)
        self.cuts[(layer.fqn, side)] = (gap, (known[1] if known else 0) + 1)

    def check_calls(self) -> None:
        users: dict[str, set[int]] = {}
        for fqn in {fqn for fqn, _ in self.cuts}:
            inside = (self.graph.layers[i] for f in self.graph.calls[fqn] for i in self.graph.layers_inside[f])
            users[fqn] = {layer.index for layer in inside if layer.params and layer.index in self.graph.live}
        for (fqn, _), (_, count) in self.cuts.items():
            if len(users[fqn] - self.dead) != count:
                raise Refusal(RefusalCode.CALLS_MISS_NONE, fqn)


def _joined_dim(graph: LayerGraph, layer: Layer) -> int:
    shapes = [graph.values[read[0]].shape for read in layer.operands]
    out = graph.values[layer.outputs[0]].shape
    dims = [d for d in range(len(out)) if sum(s[d] for s in shapes) == out[d] and len(shapes) > 1]
    if len(dims) != 1:
        raise Refusal(RefusalCode.JOINED_DIMENSION_UNKNOWN, layer.name)
    return dims[0]


def _dims_over(layer: Layer, dims: int) -> tuple[int, ...] | None:
    """The dimensions that a reduction runs over; None where its arguments do not give them."""
    args, kwargs = layer.literals
    over = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    over = (over,) if isinstance(over, int) and not isinstance(over, bool) else over
    if not isinstance(over, tuple) or not over or not all(isinstance(d, int) for d in over):
        return None
    return tuple(d % dims for d in over)
