"""What a layer does: its kind, decided by the module's type first and by the functions that ran otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules import activation, adaptive, batchnorm, dropout, instancenorm, normalization, pooling

from layerprune.stand_ins import MERGES

KINDS = (
    "transform", "normalization", "activation", "pooling", "dropout", "reshape", "merge", "split", "embedding",
    "attention", "other",
)  # fmt: skip

# Functions that apply a learned matrix or kernel when one of their operands is a parameter.
TRANSFORM_FUNCTIONS = frozenset(
    {"linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
    | {
        "matmul",
        "rmatmul",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "addbmm",
        "einsum",
        "tensordot",
        "multi_head_attention_forward",
    }
    | {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "grouped_mm"}
    | {"convolution", "_convolution", "chain_matmul", "_grouped_mm", "scaled_mm", "conv_tbc", "mv"}
)
_NORMALIZATION = frozenset(
    {"layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize"}
    | {"native_batch_norm", "native_layer_norm", "native_group_norm", "_fused_rms_norm"}
)
_ACTIVATION = frozenset(
    {"relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "softmax", "log_softmax", "leaky_relu", "elu", "selu", "celu"}
    | {"hardswish", "hardsigmoid", "hardtanh", "mish", "softplus", "softsign", "tanhshrink", "prelu", "rrelu", "glu"}
    | {"logsigmoid", "hardshrink", "softshrink", "threshold", "erf", "clamp", "exp", "logsumexp", "softmin", "square"}
    | {"clamp_min", "clamp_max", "relu6_", "sqrt_relu"}
)
_POOLING = frozenset(
    {
        f"{kind}_pool{d}d"
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp", "fractional_max")
        for d in (1, 2, 3)
    }
    | {f"max_pool{d}d_with_indices" for d in (1, 2, 3)}
    | {f"{kind}_pool{d}d_with_indices" for kind in ("adaptive_max", "fractional_max") for d in (1, 2, 3)}
    | {"mean", "amax", "amin", "interpolate", "upsample", "grid_sample", "boolean_dispatch"}
)
_DROPOUT = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
    | {"stochastic_depth", "native_dropout"}
)
_RESHAPE = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "t",
        "T",
        "mT",
        "swapaxes",
        "movedim",
        "moveaxis",
    }
    | {"squeeze", "unsqueeze", "expand", "expand_as", "contiguous", "clone", "to", "type", "type_as", "float", "half"}
    | {
        "bfloat16",
        "double",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "unfold",
        "fold",
        "pad",
        "roll",
        "flip",
    }
    | {
        "view_as",
        "reshape_as",
        "repeat",
        "repeat_interleave",
        "tile",
        "data",
        "detach",
        "alias",
        "squeeze_copy",
        "H",
        "mH",
    }
    | {"as_strided", "cpu", "cuda", "native_channel_shuffle", "swapdims", "ravel", "narrow_copy", "_to_copy", "set"}
)
_SPLIT = frozenset(
    {
        "chunk",
        "split",
        "unbind",
        "getitem",
        "select",
        "narrow",
        "tensor_split",
        "split_with_sizes",
        "index_select",
        "slice",
    }
    | {
        "gather",
        "take",
        "masked_select",
        "unsafe_chunk",
        "unsafe_split",
        "hsplit",
        "vsplit",
        "dsplit",
        "take_along_dim",
    }
)
_ATTENTION = frozenset(
    {"scaled_dot_product_attention", "flash_attn_func", "flex_attention", "_scaled_dot_product_attention_math"}
)
_STATISTICS = frozenset(
    {"mean", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm", "vector_norm", "rsqrt", "sum"}
)
_ROOTS = frozenset(
    {"rsqrt", "sqrt", "norm", "vector_norm", "linalg_vector_norm", "std", "std_mean", "pow", "linalg_norm"}
)

_ARITHMETIC = frozenset(
    {"add", "mul", "sub", "div", "truediv", "neg", "pow", "radd", "rmul", "rsub", "rtruediv", "iadd", "imul"}
)

_BY_FUNCTION = (
    (_NORMALIZATION, "normalization"),
    (_ATTENTION, "attention"),
    (_POOLING, "pooling"),
    (_DROPOUT, "dropout"),
    (_ACTIVATION, "activation"),
    (_SPLIT, "split"),
    (_RESHAPE, "reshape"),
)


def kind_of_function(name: str, num_tensors: int, has_matrix: bool) -> str:
    """Return the kind of a function called in a forward.

    Args:
        name: its name, without underscores around it.
        num_tensors: how many of its operands depend on the model's input.
        has_matrix: whether an operand is (made of) a parameter of two or more dimensions.
    """
    if name in ("embedding", "embedding_bag"):
        return "embedding"
    if name in TRANSFORM_FUNCTIONS:
        return "transform" if has_matrix else "attention" if num_tensors > 1 else "other"
    if num_tensors > 1 and (MERGES.get(name) in ("add", "mul", "cat") or name in ("stack", "div", "truediv", "where")):
        return "merge"
    return next((kind for names, kind in _BY_FUNCTION if name in names), "other")


def kind_of_module(module: nn.Module, functions: Sequence[str], num_tensors: int, has_matrix: bool) -> str:
    """Return the kind of a leaf module's call.

    Args:
        module: the leaf.
        functions: the functions that ran in its forward, in order.
        num_tensors: how many of its arguments depend on the model's input.
        has_matrix: whether it uses a parameter of two or more dimensions.
    """
    known = _kind_of_class(module)
    if known is not None:
        return known
    if "embedding" in functions or "embedding_bag" in functions:
        return "embedding"
    if has_matrix and any(name in TRANSFORM_FUNCTIONS for name in functions):
        return "transform"
    if len(set(functions)) == 1:
        return kind_of_function(functions[0], num_tensors, has_matrix)
    if any(name in _NORMALIZATION for name in functions):
        return "normalization"
    if any(name in _STATISTICS for name in functions) and any(name in _ROOTS for name in functions):
        return "normalization"
    if any(name in _ATTENTION for name in functions):
        return "attention"
    if not functions:  # hands its argument on in eval mode; one with a rate does something else when it trains
        return "dropout" if any(isinstance(value, float) for value in vars(module).values()) else "other"
    return _kind_of_mixture(functions, num_tensors)


def _kind_of_mixture(functions: Sequence[str], num_tensors: int) -> str:
    """Judge a custom leaf by the rarest thing that it does: reshapes and arithmetic come along with anything."""
    kinds = {kind_of_function(name, num_tensors, has_matrix=False) for name in functions if name not in _ARITHMETIC}
    rest = kinds - {"reshape"} or kinds
    if num_tensors > 1 and any(MERGES.get(name) in ("add", "mul", "cat") for name in functions):
        return "merge" if rest <= {"merge", "reshape", "activation"} else "other"
    if rest <= {"activation", "other"} and "activation" in rest:
        return "activation"
    return rest.pop() if len(rest) == 1 else "other"


def _kind_of_class(module: nn.Module) -> str | None:
    if isinstance(
        module, (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
    ):
        return "transform"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(
        module, (batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.RMSNorm)
    ):
        return "normalization"
    if isinstance(module, dropout._DropoutNd):
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
