"""Channels: which readers of a concat lose which input channels once an operand is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.nn.utils import parametrize

from layerprune.dropped import MERGES
from layerprune.edits import Slice, ranges
from layerprune.graph import Layer, LayerGraph


class CannotSlice(Exception):
    """Channels cannot be taken out of a layer; the message is the reason that the plan shows."""


@dataclass(frozen=True)
class Gap:
    """Channels missing from a value.

    Attributes:
        dim: the dimension they are missing from.
        missing: boolean, one per channel of the unpruned value.
    """

    dim: int
    missing: np.ndarray

    @property
    def indices(self) -> tuple[tuple[int, int], ...]:
        """The missing channels as half-open ranges."""
        return ranges(int(i) for i in np.flatnonzero(self.missing))


# Functions of one tensor that treat every channel alike and keep the dimension's place.
_ELEMENTWISE = frozenset(
    {
        "relu",
        "relu6",
        "gelu",
        "silu",
        "sigmoid",
        "tanh",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "hardswish",
        "hardsigmoid",
    }
    | {"hardtanh", "mish", "softplus", "softsign", "dropout", "dropout2d", "alpha_dropout", "feature_dropout", "clamp"}
    | {
        "contiguous",
        "clone",
        "detach",
        "alias",
        "to",
        "float",
        "half",
        "bfloat16",
        "neg",
        "exp",
        "abs",
        "square",
        "sqrt",
    }
    | {"stochastic_depth", "threshold", "logsigmoid", "data", "type", "double"}
)
_SPATIAL = frozenset(
    {f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for d in (1, 2, 3)}
    | {f"max_pool{d}d_with_indices" for d in (1, 2, 3)}
    | {"interpolate", "upsample", "boolean_dispatch", "_max_pool2d", "pad"}
)


class ChannelTrace:
    """Follows missing channels from concats to the transforms that read them.

    Args:
        graph: the layer graph.
        modules: the model's modules by name, to see how each holds its channels.
        dead: the layers that go; they need no slicing.
        substitutes: value → what its readers read instead, where other removals are made at the same time.
    """

    def __init__(
        self,
        graph: LayerGraph,
        modules: Mapping[str, nn.Module],
        dead: frozenset[int],
        substitutes: Mapping[int, int] | None = None,
    ) -> None:
        self.graph = graph
        self.substitutes = substitutes or {}
        self.modules = modules
        self.dead = dead
        self.gaps: dict[int, Gap] = {}
        self.cuts: dict[tuple[str, str], tuple[Gap, int]] = {}
        self.seen: dict[str, int] = {}

    def run(self, dropped: Iterable[tuple[int, int]]) -> list[Slice]:
        """Return the slices that dropping operands of concats asks for.

        Args:
            dropped: (concat layer, value) pairs.

        Raises:
            CannotSlice: some reader cannot lose channels.
        """
        gone: dict[int, set[int]] = {}
        for merge, value in dropped:
            gone.setdefault(merge, set()).add(value)
        for layer in self.graph.layers[min(gone, default=0) :]:
            if layer.index in self.dead or layer.index not in self.graph.live:
                continue
            if layer.index in gone:
                self.concat(layer, gone[layer.index])
            elif any(v in self.gaps for read in self.operands(layer) for v in read):
                self.follow(layer)
        if any(self.resolve(v) in self.gaps for v in self.graph.outputs):
            raise CannotSlice("its channels reach the model's output")
        self.check_calls()
        return [Slice(fqn=fqn, side=side, dropped=gap.indices) for (fqn, side), (gap, _) in self.cuts.items()]  # type: ignore[arg-type]

    def resolve(self, value: int) -> int:
        while value in self.substitutes:
            value = self.substitutes[value]
        return value

    def operands(self, layer: Layer) -> list[tuple[int, ...]]:
        """What a layer's tensor arguments read, once the substitutions are made."""
        return [tuple(self.resolve(v) for v in read) for read in layer.operands]

    # ---- one layer ------------------------------------------------------------------------------------------------

    def follow(self, layer: Layer) -> None:
        reads = [read[0] for read in self.operands(layer) if len(read) == 1]
        if any(len(read) > 1 and any(v in self.gaps for v in read) for read in self.operands(layer)):
            raise CannotSlice(f"its channels are written in place on the way to '{layer.name}'")
        gapped = [v for v in reads if v in self.gaps]
        name = layer.function or (layer.functions[0] if len(set(layer.functions)) == 1 else "")
        if MERGES.get(name) == "cat":
            self.concat(layer, set())
        elif layer.is_module and self.slice_module(layer, self.gaps[gapped[0]], len(reads)):
            return
        elif (name in _ELEMENTWISE and not layer.params) or (name in _SPATIAL and self.gaps[gapped[0]].dim == 1):
            self.pass_on(layer, self.gaps[gapped[0]])
        elif MERGES.get(name) in ("add", "mul") and not layer.params:
            self.pointwise(layer, reads)
        else:
            self.reshape(layer, gapped[0], name)

    def pass_on(self, layer: Layer, gap: Gap) -> None:
        for value in layer.outputs:
            shape = self.graph.values[value].shape
            if len(shape) <= gap.dim or shape[gap.dim] != len(gap.missing):
                raise CannotSlice(f"its channels cannot be followed through '{layer.name}' ({layer.type_name})")
            self.gaps[value] = gap

    def concat(self, layer: Layer, gone: set[int]) -> None:
        """Join the gaps of a concat's operands, each shifted to its place."""
        dim = self.concat_dim(layer)
        missing: list[np.ndarray] = []
        for original, read in zip(layer.operands, self.operands(layer), strict=True):
            if len(read) != 1:
                raise CannotSlice(f"an operand of '{layer.name}' is written in place")
            size = self.graph.values[read[0]].shape[dim]
            gap = self.gaps.get(read[0])
            if gap is not None and gap.dim != dim:
                raise CannotSlice(f"'{layer.name}' joins its tensors along another dimension")
            missing.append(np.full(size, original[0] in gone) | (gap.missing if gap is not None else False))
        self.gaps[layer.outputs[0]] = Gap(dim, np.concatenate(missing))

    def concat_dim(self, layer: Layer) -> int:
        """The dimension that a concat joins, counted from the front."""
        args, kwargs = layer.literals
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
        if layer.is_module or not isinstance(dim, int):
            return _joined_dim(self.graph, layer)
        return dim % len(self.graph.values[layer.outputs[0]].shape)

    def pointwise(self, layer: Layer, reads: list[int]) -> None:
        """An add or a product: every operand that has the channels must miss the same ones."""
        gap = next(self.gaps[v] for v in reads if v in self.gaps)
        for value in reads:
            shape = self.graph.values[value].shape
            other = self.gaps.get(value)
            dim = gap.dim - (len(self.graph.values[layer.outputs[0]].shape) - len(shape))
            broadcast = dim < 0 or shape[dim] == 1
            same = other is not None and other.dim == gap.dim and bool(np.array_equal(other.missing, gap.missing))
            if not broadcast and not same:
                raise CannotSlice(f"'{layer.name}' joins its channels with a tensor that keeps all of them")
        self.pass_on(layer, gap)

    def reshape(self, layer: Layer, value: int, name: str) -> None:
        """A flatten behind the channels, a permutation, or a mean over other dimensions."""
        gap, before = self.gaps[value], self.graph.values[value].shape
        after = self.graph.values[layer.outputs[0]].shape
        if name in ("flatten", "view", "reshape") and gap.dim == 1 and len(after) == 2 and before[0] == after[0]:
            repeated = np.repeat(gap.missing, int(np.prod(before[2:], dtype=np.int64)))
            if len(repeated) == after[1]:
                self.gaps[layer.outputs[0]] = Gap(1, repeated)
                return
        if name in ("permute", "transpose", "swapaxes") and (order := _permutation(layer, name, len(before))):
            self.gaps[layer.outputs[0]] = Gap(order.index(gap.dim), gap.missing)
            return
        if (
            name == "mean"
            and gap.dim == 1
            and len(after) > 1
            and after[:2] == before[:2]
            and _reduces_behind(layer, len(before))
        ):
            self.gaps[layer.outputs[0]] = gap
            return
        raise CannotSlice(
            f"its channels pass through '{layer.name}' ({layer.type_name}), which cannot lose some of them"
        )

    # ---- modules --------------------------------------------------------------------------------------------------

    def slice_module(self, layer: Layer, gap: Gap, num_reads: int) -> bool:
        """Slice a module of torch's own; False where it is none, or its channels are not known."""
        module = self.modules[layer.fqn]
        rule = _rule_of(module)
        if rule is None:
            return False
        if parametrize.is_parametrized(module) or set(module._forward_pre_hooks):
            raise CannotSlice(
                f"'{layer.fqn}' computes its weight (a parametrization or a hook), which cannot lose channels"
            )
        side, next_gap = rule(module, gap, len(self.graph.values[layer.operands[0][0]].shape), layer.fqn)
        if side:
            self.cut(layer, side, gap)
        if next_gap is not None:
            self.pass_on(layer, next_gap)
        return True

    def cut(self, layer: Layer, side: str, gap: Gap) -> None:
        for name in layer.params:
            users = self.graph.param_users[self.graph.param_ids[name]]
            if any(self.graph.layers[u].fqn != layer.fqn for u in users):
                raise CannotSlice(f"'{name}' is tied to another layer, which keeps all channels")
        known = self.cuts.get((layer.fqn, side))
        if known is not None and not np.array_equal(known[0].missing, gap.missing):
            raise CannotSlice(f"'{layer.fqn}' is called several times, with different channels missing")
        self.cuts[(layer.fqn, side)] = (gap, (known[1] if known else 0) + 1)

    def check_calls(self) -> None:
        for (fqn, _), (_, count) in self.cuts.items():
            calls = [i for f in self.graph.calls[fqn] for i in self.graph.layers_inside[f] if i in self.graph.live]
            if len([i for i in calls if i not in self.dead]) != count:
                raise CannotSlice(f"'{fqn}' is called several times, not always with these channels")


def _joined_dim(graph: LayerGraph, layer: Layer) -> int:
    shapes = [graph.values[read[0]].shape for read in layer.operands]
    out = graph.values[layer.outputs[0]].shape
    dims = [d for d in range(len(out)) if sum(s[d] for s in shapes) == out[d] and len(shapes) > 1]
    if len(dims) != 1:
        raise CannotSlice(f"the dimension that '{layer.name}' joins is not known")
    return dims[0]


def _permutation(layer: Layer, name: str, dims: int) -> list[int] | None:
    """For each dimension of the output, the dimension of the input that it was."""
    args, kwargs = layer.literals
    given = list(args[1:]) or list(kwargs.values())
    flat = list(given[0]) if len(given) == 1 and isinstance(given[0], tuple) else given
    if not all(isinstance(d, int) for d in flat):
        return None
    order = [int(d) % dims for d in flat]
    if name == "permute":
        return order if sorted(order) == list(range(dims)) else None
    if len(order) != 2:
        return None
    swapped = list(range(dims))
    swapped[order[0]], swapped[order[1]] = swapped[order[1]], swapped[order[0]]
    return swapped


def _reduces_behind(layer: Layer, dims: int) -> bool:
    args, kwargs = layer.literals
    over = kwargs.get("dim", args[1] if len(args) > 1 else None)
    over = (over,) if isinstance(over, int) else over
    return isinstance(over, tuple) and all(isinstance(d, int) and d % dims > 1 for d in over)


# ---- what torch's modules do with channels: (module, gap, dims of the input, name) → (side to slice, gap behind) -----

_Rule = Callable[[nn.Module, Gap, int, str], "tuple[str, Gap | None]"]


def _conv(module: nn.Module, gap: Gap, dims: int, name: str) -> tuple[str, Gap | None]:
    assert isinstance(module, nn.modules.conv._ConvNd)
    if gap.dim != 1 or dims != module.weight.dim():
        raise CannotSlice(f"'{name}' reads them as something other than channels")
    if module.groups == 1:
        return "in", None
    if module.groups != module.in_channels or module.out_channels != module.in_channels or module.transposed:
        raise CannotSlice(
            f"'{name}' is a grouped convolution ({module.groups} groups), whose groups would become uneven"
        )
    return "channels", gap


def _linear(module: nn.Module, gap: Gap, dims: int, name: str) -> tuple[str, Gap | None]:
    if gap.dim != dims - 1:
        raise CannotSlice(f"'{name}' mixes another dimension than the one that loses channels")
    return "in", None


def _batch_norm(module: nn.Module, gap: Gap, dims: int, name: str) -> tuple[str, Gap | None]:
    if gap.dim != 1:
        raise CannotSlice(f"'{name}' normalizes another dimension than the one that loses channels")
    return "channels", gap


def _instance_norm(module: nn.Module, gap: Gap, dims: int, name: str) -> tuple[str, Gap | None]:
    if gap.dim != 1 or dims < 3:
        raise CannotSlice(f"'{name}' normalizes another dimension than the one that loses channels")
    return "channels", gap


def _mixing_norm(module: nn.Module, gap: Gap, dims: int, name: str) -> tuple[str, Gap | None]:
    raise CannotSlice(f"'{name}' ({type(module).__name__}) normalizes across channels, so the others would change")


def _prelu(module: nn.Module, gap: Gap, dims: int, name: str) -> tuple[str, Gap | None]:
    assert isinstance(module, nn.PReLU)
    return ("channels" if module.weight.numel() > 1 else ""), gap


_RULES: tuple[tuple[tuple[type[nn.Module], ...], _Rule], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv),
    ((nn.Linear,), _linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _batch_norm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    ((nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm), _mixing_norm),
    ((nn.PReLU,), _prelu),
)


def _rule_of(module: nn.Module) -> _Rule | None:
    for types, rule in _RULES:
        for cls in types:
            # A subclass that computes something else (standardised weights, say) has channels that we do not know.
            if isinstance(module, cls) and type(module).forward is cls.forward:
                return rule
    return None
