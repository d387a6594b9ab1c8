"""Registers custom ops with the claims of the user, as far as the op's schema allows them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch

from layerprune.errors import ArgumentError
from layerprune.tensors.op_traits import OpTraits, is_custom, op_name, register, registered_ops
from layerprune.torch_internals import CustomOpDef, OpOverload, OpOverloadPacket, name_of_custom_op, schema_of

Kind: TypeAlias = Literal[
    "transform", "normalization", "activation", "pooling", "dropout", "reshape", "split", "embedding", "attention",
    "other",
]  # fmt: skip
Merge: TypeAlias = Literal["add", "mul", "cat"]
Channels: TypeAlias = Literal["elementwise", "spatial", "moves"]


def register_op(
    op: str | OpOverload | OpOverloadPacket | CustomOpDef,
    *,
    kind: Kind | None = None,
    merge: Merge | None = None,
    channels: Channels | None = None,
    macs: Callable[..., int] | None = None,
    replace: bool = False,
) -> None:
    """Claim how a custom op behaves, so that layers around it can be removed.

    ``merge`` and ``channels`` are checked whenever a model that calls the op is recorded: the op runs on random tensors
    of the recorded shapes. ``kind`` and ``macs`` are not checked: no proof relies on them.

    Args:
        op: an op of the dispatcher: the result of ``torch.library.custom_op``, ``torch.ops.mine.join``, or the name
            ``"mine::join"``. Torch's own functions are known already.
        kind: the kind of the layer; ``transform`` where the op applies a learned matrix: it then leads a group.
        merge: how the op joins its two tensors, or its list of tensors for ``cat``: ``add`` for their sum and ``mul``
            for their product, broadcast as in torch. An operand may then be left out.
        channels: the effect of missing channels of its only tensor. ``elementwise``: all elements are treated alike and
            independently. ``spatial``: all channels, dimension 1, are treated alike and independently. ``moves``: the
            op moves, repeats or leaves out elements, and computes nothing.
        macs: gets the op's arguments, shapes in place of tensors, and ``out_shape=``; returns its multiply-accumulates.
        replace: whether to replace an existing registration.

    Raises:
        ArgumentError: no argument is given, arguments contradict one another or the op's schema, no op has the name, or
            the op is registered already; the message says which.

    The check of a recorded model raises :class:`~layerprune.errors.OpClaimError`.
    """
    name, overload = _found(op)
    if name in registered_ops() and not replace:
        raise ArgumentError(f"'{name}' is registered: pass replace=True to register it anew")
    _check_words(name, kind, merge, channels, has_macs=macs is not None)
    _check_schema(name, overload, merge, channels)
    if macs is not None:
        _check_formula(name, macs)
    chosen = "merge" if merge is not None else kind or _KINDS.get(channels or "", "other")
    is_pointwise = merge in ("add", "mul")
    register(
        name, OpTraits(kind=chosen, merge=merge or "", channels=channels or "", is_pointwise=is_pointwise, macs=macs)
    )


_KINDS = {"elementwise": "activation", "spatial": "pooling", "moves": "reshape"}  # unless kind= says another


def _found(op: Any) -> tuple[str, OpOverload]:
    if isinstance(op, CustomOpDef):
        op = name_of_custom_op(op)
    if isinstance(op, str):
        library, _, short = op.partition("::")
        known = getattr(getattr(torch.ops, library), short, None) if library and short.isidentifier() else None
        if known is None:
            raise ArgumentError(
                f"torch has no op {op!r:.80}: define it first, or pass it itself; names are like 'mine::join'"
            )
        op = known
    if not isinstance(op, (OpOverload, OpOverloadPacket)):
        raise ArgumentError(
            f"{op!r:.80} is no op of torch's dispatcher: pass what torch.library.custom_op returned, "
            "torch.ops.mine.join, or its name 'mine::join'"
        )
    name = op_name(op)
    if not is_custom(name):
        raise ArgumentError(f"'{name}' is torch's own, and known: only ops of other libraries are registered")
    return name, op if isinstance(op, OpOverload) else getattr(op, op.overloads()[0])


def _check_words(name: str, kind: Any, merge: Any, channels: Any, *, has_macs: bool) -> None:
    if kind is None and merge is None and channels is None and not has_macs:
        raise ArgumentError(f"nothing is said of '{name}': pass kind=, merge=, channels= or macs=")
    for word, value, known in (
        ("kind", kind, get_args(Kind)),
        ("merge", merge, get_args(Merge)),
        ("channels", channels, get_args(Channels)),
    ):
        if value is not None and value not in known:
            hint = "; pass merge= for a merge" if value == "merge" else ""
            raise ArgumentError(f"{word}={value!r:.40} of '{name}' is none of {', '.join(known)}{hint}")
    if merge is not None and (kind is not None or channels is not None):
        raise ArgumentError(f"'{name}' cannot be a merge and something else: pass merge= without kind= and channels=")


def _check_schema(name: str, op: OpOverload, merge: str | None, channels: str | None) -> None:
    if merge is None and channels is None:
        return
    schema = schema_of(op)
    taken = [str(argument.type) for argument in schema.arguments if "Tensor" in str(argument.type)]
    if merge == "cat":
        fits, what = taken == ["List[Tensor]"] and "List" in str(schema.arguments[0].type), "a list of tensors first"
    elif merge is not None:
        fits, what = taken == ["Tensor", "Tensor"], "two tensors"
    else:
        fits, what = taken == ["Tensor"] and str(schema.arguments[0].type) == "Tensor", "one tensor, first"
    made = [str(one.type) for one in schema.returns]
    returns = made == ["Tensor"] or (channels == "moves" and made == ["List[Tensor]"])
    if schema.is_mutable or not fits or not returns:
        said = f"merge={merge!r}" if merge is not None else f"channels={channels!r}"
        raise ArgumentError(f"{said} is for an op that takes {what}, writes into none and returns one: not {schema}")


def _check_formula(name: str, macs: Callable[..., int]) -> None:
    if not callable(macs):
        raise ArgumentError(f"macs= of '{name}' is {macs!r:.40}: pass a function of shapes")
    parameters = inspect.signature(macs).parameters.values()
    if not any(one.name == "out_shape" or one.kind is one.VAR_KEYWORD for one in parameters):
        raise ArgumentError(f"macs= of '{name}' takes no out_shape: pass def macs(*shapes, out_shape, **options)")
