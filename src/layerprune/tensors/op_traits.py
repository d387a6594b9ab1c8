"""The table of op traits: one entry per op, for torch's functions and for ops that ``register_op`` adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from layerprune.torch_internals import OpOverload, OpOverloadPacket, constant, schema_of

#: What a layer does; ``merge`` joins tensors that depend on the model's input, ``transform`` applies a learned matrix.
KINDS = (
    "transform", "normalization", "activation", "pooling", "dropout", "reshape", "merge", "split", "embedding",
    "attention", "other",
)  # fmt: skip

# Libraries of torch itself, whose ops have the names of its functions.
_TORCHS_OWN = frozenset({"aten", "prim", "prims"})


@dataclass(frozen=True, kw_only=True)
class OpTraits:
    """The traits of one op.

    Attributes:
        kind: one of :data:`KINDS`, for operands that depend on the model's input.
        merge: how the op leaves a dropped operand out: ``add``, ``mul``, ``cat``, or ``bypass`` where the op passes its
            input through once its parameters are dropped. Empty where it cannot.
        is_left_only: whether only the first operand can replace the result, as for a difference.
        channels: the effect of missing channels of the only operand. ``elementwise``: the result lacks the same
            channels. ``spatial``: likewise, for dimension 1. ``over``: likewise, unless the op computes over that
            dimension; ``reduction``: over dimensions that the result loses. ``moves``: elements only move, which a run
            on numbered elements shows. Empty where unknown.
        keeps_order: whether the result holds the elements of the operand in the same order.
        is_pointwise: whether the op joins elements of its operands one by one.
        is_arithmetic: whether the op occurs in any module, and so does not show the purpose of a module.
        is_statistic: whether the op may be the mean or the variance of a normalization written in Python.
        is_root: whether the op may be the root in such a normalization.
        is_cast: whether the op changes a tensor's type.
        weight_axis: for a transform that a projection can be folded into, the input axis of its weight.
        macs: multiply-accumulates of a registered op.
    """

    kind: str = "other"
    merge: Literal["", "add", "mul", "cat", "bypass"] = ""
    is_left_only: bool = False
    channels: Literal["", "elementwise", "spatial", "over", "reduction", "moves"] = ""
    keeps_order: bool = False
    is_pointwise: bool = False
    is_arithmetic: bool = False
    is_statistic: bool = False
    is_root: bool = False
    is_cast: bool = False
    weight_axis: int | None = None
    macs: Callable[..., int] | None = None

    @property
    def is_sum(self) -> bool:
        return self.merge == "add" and not self.is_left_only

    @property
    def joins(self) -> bool:
        """Whether the op is a merge that only puts tensors side by side."""
        return self.kind == "merge" and not self.is_pointwise


@constant
def op_name(func: Callable[..., Any]) -> str:
    """The name of torch's own function without underscores (``iadd``), or ``library::op``."""
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        overload = func if isinstance(func, OpOverload) else getattr(func, func.overloads()[0])
        qualified: str = schema_of(overload).name
        if qualified.partition("::")[0] not in _TORCHS_OWN:
            return qualified
    return raw_name(func).strip("_")


@constant
def raw_name(func: Callable[..., Any]) -> str:
    """A function's name in torch; for an attribute's getter the attribute's name."""
    raw = getattr(func, "__name__", str(func))
    return getattr(getattr(func, "__self__", None), "__name__", raw) if raw == "__get__" else raw


def traits_of(name: str) -> OpTraits:
    """The traits of a named op, see :func:`op_name`; default traits for an op outside the table."""
    return _OPS.get(name, _UNKNOWN)


def merge_label(name: str) -> str:
    """The label of a merge in edits: ``add``, ``mul``, ``cat`` or ``bypass``, or the name of a registered op.

    A plan that drops an operand of a registered op can only be applied where the op is registered.
    """
    merge = traits_of(name).merge
    return name if merge and is_custom(name) else merge


def is_merge_label(label: str) -> bool:
    """Whether an edit may hold this label."""
    return label in ("add", "mul", "cat", "bypass") or (is_custom(label) and bool(traits_of(label).merge))


def merge_of_label(label: str) -> str:
    """The merge that a label stands for."""
    return traits_of(label).merge if is_custom(label) else label


def is_custom(name: str) -> bool:
    """Whether a name is that of a custom op."""
    return "::" in name


def has_claims(name: str) -> bool:
    """Whether a user has made claims about an op that are checked where a model calls it."""
    traits = traits_of(name)
    return is_custom(name) and bool(traits.merge or traits.channels)


def registered_ops() -> Mapping[str, OpTraits]:
    """The traits of registered ops, by name."""
    return {name: traits for name, traits in _OPS.items() if is_custom(name)}


def register(name: str, traits: OpTraits) -> None:
    """Enter a custom op; ``register_op`` checks the traits first."""
    _OPS[name] = traits


def unregister(name: str) -> None:
    """Remove a registered op."""
    if is_custom(name):
        _OPS.pop(name, None)


_UNKNOWN = OpTraits()
_TABLE: tuple[tuple[OpTraits, str], ...] = (
    # Transforms apply a learned matrix or kernel when one of their operands is a parameter.
    (OpTraits(kind="transform", merge="bypass", weight_axis=1), "linear conv1d conv2d conv3d"),
    (OpTraits(kind="transform", weight_axis=0), "matmul mm"),
    (
        OpTraits(kind="transform"),
        "bilinear conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc convolution _convolution rmatmul bmm mv "
        "addmm baddbmm addbmm einsum tensordot chain_matmul grouped_mm _grouped_mm scaled_mm "
        "multi_head_attention_forward lstm lstm_cell gru gru_cell rnn_tanh rnn_tanh_cell rnn_relu rnn_relu_cell",
    ),
    (OpTraits(kind="embedding"), "embedding embedding_bag"),
    (
        OpTraits(kind="attention"),
        "scaled_dot_product_attention _scaled_dot_product_attention_math flash_attn_func flex_attention",
    ),
    # Merges.
    (OpTraits(kind="merge", merge="add", is_pointwise=True, is_arithmetic=True), "add iadd radd"),
    (
        OpTraits(kind="merge", merge="add", is_left_only=True, is_pointwise=True, is_arithmetic=True),
        "sub isub subtract",
    ),
    (OpTraits(kind="merge", merge="mul", is_pointwise=True, is_arithmetic=True), "mul imul rmul multiply"),
    (OpTraits(kind="merge", merge="cat"), "cat concat concatenate"),
    (OpTraits(kind="merge", is_pointwise=True, is_arithmetic=True), "div truediv"),
    (OpTraits(kind="merge", is_pointwise=True), "where"),
    (OpTraits(kind="merge"), "stack"),
    (OpTraits(is_arithmetic=True), "rsub rtruediv"),
    # One tensor, element by element.
    (
        OpTraits(kind="activation", channels="elementwise"),
        "relu relu6 gelu silu sigmoid tanh leaky_relu elu selu celu hardswish hardsigmoid hardtanh mish softplus "
        "softsign tanhshrink hardshrink softshrink threshold logsigmoid erf exp square clamp clamp_min",
    ),
    (OpTraits(kind="activation", channels="over"), "softmax log_softmax"),
    (OpTraits(kind="activation"), "clamp_max glu logsumexp prelu relu6_ rrelu softmin sqrt_relu"),
    (OpTraits(channels="elementwise"), "abs sin cos reciprocal relu_"),
    (OpTraits(channels="elementwise", is_arithmetic=True), "neg"),
    (OpTraits(channels="elementwise", is_arithmetic=True, is_root=True), "pow"),
    (OpTraits(channels="elementwise", is_root=True), "sqrt"),
    (OpTraits(channels="elementwise", is_root=True, is_statistic=True), "rsqrt"),
    (OpTraits(kind="dropout", channels="elementwise", keeps_order=True), "dropout"),
    (OpTraits(kind="dropout", channels="elementwise"), "dropout2d alpha_dropout feature_dropout stochastic_depth"),
    (OpTraits(kind="dropout"), "dropout1d dropout3d feature_alpha_dropout native_dropout"),
    # Statistics over dimensions.
    (OpTraits(kind="pooling", channels="reduction", is_statistic=True), "mean"),
    (OpTraits(kind="pooling", channels="reduction"), "amax amin"),
    (OpTraits(channels="reduction", is_statistic=True), "sum var"),
    (OpTraits(channels="reduction", is_statistic=True, is_root=True), "norm std"),
    (OpTraits(channels="over"), "max min"),
    (OpTraits(is_statistic=True, is_root=True), "linalg_vector_norm vector_norm std_mean"),
    (OpTraits(is_statistic=True), "var_mean"),
    (OpTraits(is_root=True), "linalg_norm"),
    (
        OpTraits(kind="normalization"),
        "layer_norm group_norm batch_norm instance_norm rms_norm local_response_norm normalize native_layer_norm "
        "native_group_norm native_batch_norm _fused_rms_norm",
    ),
    # Images.
    (
        OpTraits(kind="pooling", channels="spatial"),
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d lp_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices interpolate "
        "upsample boolean_dispatch",
    ),
    (
        OpTraits(kind="pooling"),
        "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices "
        "fractional_max_pool1d fractional_max_pool2d fractional_max_pool3d fractional_max_pool1d_with_indices "
        "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices grid_sample",
    ),
    (OpTraits(channels="spatial"), "_max_pool2d"),
    # Elements move, repeat or are left out.
    (
        OpTraits(kind="reshape", channels="moves", keeps_order=True),
        "view reshape flatten unflatten squeeze unsqueeze ravel",
    ),
    (OpTraits(kind="reshape", keeps_order=True), "view_as reshape_as"),
    (
        OpTraits(kind="reshape", channels="moves"),
        "permute transpose t mT swapaxes swapdims movedim moveaxis pixel_shuffle pixel_unshuffle channel_shuffle "
        "native_channel_shuffle roll flip repeat repeat_interleave tile expand",
    ),
    (OpTraits(channels="moves"), "adjoint view_as_windows"),
    (
        OpTraits(kind="split", channels="moves"),
        "chunk split split_with_sizes tensor_split unbind getitem select narrow unsafe_chunk unsafe_split "
        "hsplit vsplit",
    ),
    (OpTraits(kind="split"), "dsplit gather index_select masked_select slice take take_along_dim"),
    (
        OpTraits(kind="reshape", channels="elementwise", keeps_order=True),
        "contiguous clone detach data alias",
    ),
    (OpTraits(kind="reshape", channels="elementwise", is_cast=True), "to type float half bfloat16 double"),
    (OpTraits(kind="reshape", is_cast=True), "type_as"),
    (OpTraits(kind="reshape", channels="spatial"), "pad"),
    (
        OpTraits(kind="reshape"),
        "H mH T _to_copy as_strided cpu cuda expand_as fold unfold narrow_copy set squeeze_copy",
    ),
)
_OPS: dict[str, OpTraits] = {name: traits for traits, names in _TABLE for name in names.split()}
