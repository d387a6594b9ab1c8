"""Layers that can take in a projection of their input: modules of known types, and functions of a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from layerprune.capture import has_memo
from layerprune.edits import Fold
from layerprune.graph import Layer, Refusal, RefusalCode
from layerprune.modules import FunctionWatch, is_transposed
from layerprune.tensors import traits_of
from layerprune.torch_internals import Conv, parameters_of, pre_hooks_of

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True, eq=False, kw_only=True)
class Reader:
    """A transform that can take a projection in.

    Attributes:
        module: the module that owns its weight.
        weight: the weight's name there.
        bias: the bias's name there; empty where the module owns none.
        axis: input axis of the weight: 1, or 0 for a transposed weight.
        called: whether the module itself is called, and not a function.
        pads: whether it puts zeros around its input, or may do so.
    """

    module: nn.Module
    weight: str
    bias: str
    axis: int
    called: bool = True
    pads: bool = False

    @property
    def tensor(self) -> Tensor:
        held = parameters_of(self.module)[self.weight]
        assert held is not None
        return held

    @property
    def num_groups(self) -> int:
        """Number of blocks of a convolution's weight."""
        return self.module.groups if self.called and isinstance(self.module, Conv) else 1

    @property
    def num_in(self) -> int:
        return self.tensor.shape[self.axis] * self.num_groups

    @property
    def num_axes(self) -> int:
        """Number of image axes of its input; 0 where channels come last."""
        return self.tensor.dim() - 2

    def dense(self) -> Tensor:
        """The weight, with zeros for the blocks that a grouped convolution leaves out."""
        weight = self.tensor.detach()
        if self.num_groups == 1:
            return weight
        blocks = weight.unflatten(0, (self.num_groups, -1))
        found = blocks.new_zeros(*blocks.shape[:2], self.num_groups, *blocks.shape[2:])
        for group in range(self.num_groups):
            found[group, :, group] = blocks[group]
        return found.flatten(2, 3).flatten(0, 1)

    def size(self, num_in: int) -> int:
        """Number of elements of its weight with ``num_in`` channels; a projection mixes all groups into one."""
        return self.tensor.numel() // self.tensor.shape[self.axis] * num_in

    def growth(self, num_in: int) -> int:
        """Number of elements that its weight gains; below 0 for a loss."""
        return self.size(num_in) - self.tensor.numel()

    def strides(self, before: tuple[int, ...], now: tuple[int, ...]) -> tuple[int, ...] | None:
        """Strides of the transform at which its new input matches its old one, from the shapes ``before`` and ``now``.

        Empty where channels come last; None where no stride matches.
        """
        if len(before) != len(now):
            return None
        if not self.num_axes:
            return () if before[:-1] == now[:-1] else None
        if len(before) != self.num_axes + 2 or before[0] != now[0]:
            return None
        strides = tuple(-(-n // b) for b, n in zip(before[2:], now[2:], strict=True))
        fits = all(-(-n // s) == b for b, n, s in zip(before[2:], now[2:], strides, strict=True))
        return strides if fits and (max(strides) == 1 or self.can_stride) else None

    @property
    def can_stride(self) -> bool:
        """Whether its stride can be changed, with all dependent attributes; a function's is in some forward."""
        if not self.called or not isinstance(self.module, Conv):
            return False
        return self.module.padding_mode == "zeros" and self.module.padding != "same"


def reader_of(module: nn.Module) -> Reader:
    """Return the reader that a module's own call is; raises :class:`Refusal` where it is none."""
    if not _is_known(module):
        raise Refusal(RefusalCode.UNKNOWN_TRANSFORM, type=type(module).__name__)
    weight = parameters_of(module).get("weight")
    if weight is None or _is_hooked(module):
        raise Refusal(RefusalCode.OWN_WAY)
    if not weight.is_floating_point():
        raise Refusal(RefusalCode.QUANTISED)
    bias = "" if parameters_of(module).get("bias") is None else "bias"
    pads = False
    if isinstance(module, Conv):
        pads = module.padding not in ("valid", (0,) * len(module.kernel_size)) and module.padding_mode == "zeros"
    return Reader(module=module, weight="weight", bias=bias, axis=0 if is_transposed(module) else 1, pads=pads)


def reader_for(module: nn.Module, edit: Fold) -> Reader:
    """Return the reader that an edit names; raises :class:`Refusal` where there is none."""
    if not edit.function:
        return reader_of(module)
    weight = parameters_of(module).get(edit.weight)
    if weight is None or not weight.is_floating_point() or weight.dim() <= edit.axis:
        raise Refusal(RefusalCode.NO_WEIGHT, param=edit.weight)
    return Reader(module=module, weight=edit.weight, bias="", axis=edit.axis, called=False)


def reader_at(modules: Mapping[str, nn.Module], layer: Layer) -> tuple[str, Reader]:
    """Return a layer's reader, with the name of its module, or of the weight that a function reads with.

    Raises :class:`Refusal` where the layer is no reader.
    """
    module = modules[layer.fqn]
    function = layer.function or (layer.functions[0] if len(layer.functions) == 1 else "")
    if layer.is_module and (_is_known(module) or traits_of(function).weight_axis is None):
        return layer.fqn, reader_of(module)
    if layer.is_module and _is_hooked(module):
        raise Refusal(RefusalCode.OWN_WAY)
    held = {name: parameters_of(modules[name.rpartition(".")[0]]).get(name.rpartition(".")[2]) for name in layer.params}
    matrices = [name for name, tensor in held.items() if tensor is not None and tensor.dim() > 1]
    axis = traits_of(function).weight_axis
    if axis is None or len(matrices) != 1 or not layer.operands[0]:
        raise Refusal(RefusalCode.UNKNOWN_FUNCTION, function=layer.function or layer.functions[0])
    owner, _, weight = matrices[0].rpartition(".")
    tensor = cast(Tensor, held[matrices[0]])
    if not tensor.is_floating_point():
        raise Refusal(RefusalCode.QUANTISED)
    if axis == 0 and tensor.dim() > 2:
        raise Refusal(RefusalCode.SEVERAL_MATRICES, function=function)
    biases = [name.rpartition(".") for name, bias in held.items() if bias is not None and bias.dim() == 1]
    bias = biases[0][2] if len(biases) == 1 and biases[0][0] == owner else ""
    pads = function.startswith("conv") and (layer.is_module or _pads(layer))  # a module's inner padding is not known
    return matrices[0], Reader(module=modules[owner], weight=weight, bias=bias, axis=axis, called=False, pads=pads)


def watching_functions(
    weights: Mapping[str, Tensor],
    *,
    read: Callable[[str, Tensor], None] = lambda name, tensor: None,
    made: Callable[[str, Tensor], None] = lambda name, tensor: None,
) -> FunctionWatch:
    """Report inputs and outputs of functions that use the very objects ``weights``; fused fast paths are off meanwhile.

    ``read`` gets a weight's name and an input, ``made`` a weight's name and an output.
    """
    names = {id(weight): name for name, weight in weights.items()}

    def call(function: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        given = [*args, *kwargs.values()] if traits_of(function).weight_axis is not None else []
        name = next((names[id(item)] for item in given if id(item) in names), None)
        if name is None:
            return func(*args, **kwargs)
        read(name, args[0] if args else kwargs["input"])
        out = func(*args, **kwargs)
        made(name, out)
        return out

    return FunctionWatch(call)


def _is_known(module: nn.Module) -> bool:
    known = any(type(module).forward is known.forward for known in (nn.Linear, *_CONVS))
    return known or is_transposed(module)


def _is_hooked(module: nn.Module) -> bool:
    return bool(pre_hooks_of(module)) or ("forward" in vars(module) and not has_memo(module))


def _pads(layer: Layer) -> bool:
    """Whether a convolution that is called as a function puts zeros around its input."""
    args, named = layer.literals
    padding = {**dict(zip(_CONV_ARGUMENTS, args, strict=False)), **named}.get("padding") or 0
    return padding != "valid" and any(padding if isinstance(padding, (tuple, list, str)) else (padding,))
