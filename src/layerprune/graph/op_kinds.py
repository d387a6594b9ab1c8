"""The kind of a layer, from its module's type, or else from the functions that ran."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules import activation, adaptive, instancenorm, normalization, pooling

from layerprune.tensors import OpTraits, traits_of
from layerprune.torch_internals import BatchOrInstanceNorm, Conv, Dropout


def kind_of_function(name: str, num_tensors: int, has_matrix: bool) -> str:
    """Return the kind of a function called in a forward.

    ``num_tensors`` counts the operands that depend on the model's input; ``has_matrix`` tells whether an operand is
    (made of) a parameter of two or more dimensions.
    """
    kind = traits_of(name).kind
    if kind == "transform":
        return "transform" if has_matrix else "attention" if num_tensors > 1 else "other"
    return "other" if kind == "merge" and num_tensors < 2 else kind


def kind_of_module(module: nn.Module, functions: Sequence[str], num_tensors: int, has_matrix: bool) -> str:
    """Return the kind of a leaf module's call, from its class or from the functions that ran in its forward, in order.

    ``num_tensors`` counts the arguments that depend on the model's input; ``has_matrix`` tells whether the module uses
    a parameter of two or more dimensions.
    """
    known = _kind_of_class(module)
    if known is not None:
        return known
    does = [traits_of(name) for name in functions]
    kinds = {each.kind for each in does}
    if "embedding" in kinds:
        return "embedding"
    if has_matrix and "transform" in kinds:
        return "transform"
    if len(set(functions)) == 1:
        return kind_of_function(functions[0], num_tensors, has_matrix)
    if "normalization" in kinds or (any(each.is_statistic for each in does) and any(each.is_root for each in does)):
        return "normalization"
    if "attention" in kinds:
        return "attention"
    if not functions:  # the identity in eval mode; with a rate, train mode does something else
        return "dropout" if any(isinstance(value, float) for value in vars(module).values()) else "other"
    return _kind_of_mixture(functions, does, num_tensors)


def _kind_of_mixture(functions: Sequence[str], does: Sequence[OpTraits], num_tensors: int) -> str:
    """The kind of a custom leaf by its rarest function: reshapes and arithmetic occur in every kind."""
    telling = [name for name, each in zip(functions, does, strict=True) if not each.is_arithmetic]
    kinds = {kind_of_function(name, num_tensors, has_matrix=False) for name in telling}
    rest = kinds - {"reshape"} or kinds
    if num_tensors > 1 and any(each.merge in ("add", "mul", "cat") for each in does):
        return "merge" if rest <= {"merge", "reshape", "activation"} else "other"
    if rest <= {"activation", "other"} and "activation" in rest:
        return "activation"
    return rest.pop() if len(rest) == 1 else "other"


def _kind_of_class(module: nn.Module) -> str | None:
    if isinstance(module, (nn.Linear, nn.Bilinear, Conv, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        return "transform"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(
        module, (BatchOrInstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.RMSNorm)
    ):
        return "normalization"
    if isinstance(module, Dropout):
        return "dropout"
    if isinstance(
        module, (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Fold, nn.Unfold)
    ):
        return "reshape"
    by_file = {
        activation.__name__: "activation",
        pooling.__name__: "pooling",
        normalization.__name__: "normalization",
        instancenorm.__name__: "normalization",
        adaptive.__name__: "transform",
        "torch.nn.modules.upsampling": "pooling",
        "torch.nn.modules.padding": "reshape",
    }
    return next((by_file[cls.__module__] for cls in type(module).__mro__ if cls.__module__ in by_file), None)
