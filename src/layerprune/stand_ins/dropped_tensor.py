"""Dropped tensors, which stand-ins of removed branches return; the merge that reads one leaves it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from layerprune.errors import DroppedTensorError
from layerprune.stand_ins.base import StandIn
from layerprune.stand_ins.observers import ANSWERED, answer, looks_on
from layerprune.tensors import (
    OutputTree,
    StandInLeaf,
    Structure,
    caller,
    is_merge_label,
    merge_label,
    op_name,
    pick,
    raw_name,
    traits_of,
)
from layerprune.torch_internals import FollowsCasts, is_strict_export, is_tracing, no_function_subclasses, no_modes

# Attributes that do not depend on the unknown shape and values.
_PLAIN = frozenset(
    {"dtype", "device", "layout", "requires_grad", "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized"}
    | {"is_floating_point", "is_complex", "is_inference", "grad", "grad_fn", "is_leaf", "is_nested", "is_mps", "is_xpu"}
    | {"_version", "requires_grad_", "_backward_hooks", "as_subclass", "is_mkldnn", "names", "retains_grad"}
    | {"element_size", "itemsize", "get_device", "is_signed", "is_conj", "is_neg", "is_pinned", "is_shared", "is_xla"}
)
# Functions that need no answer from the tensor.
_SILENT = frozenset({"__set__", "__repr__", "__format__", "__deepcopy__", "__hash__"})
# Functions that return a shape or a value, which is unknown.
_UNKNOWN = frozenset(
    {"shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "stride", "__len__", "__iter__", "__array__"}
    | {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy"}
    | {"unbind", "split_with_sizes", "tensor_split", "nonzero", "is_nonzero", "equal", "allclose", "mT_shape"}
)


class DroppedTensor(Tensor):
    """A removed tensor: it has no shape and no values.

    Any function of a dropped tensor is dropped too, except a merge named in :attr:`merges`, which returns its other
    operand. So a forward runs unchanged around a removed branch, at any batch size and without cost. A function that
    needs a shape or a value raises :class:`DroppedTensorError`.

    Attributes:
        merges: the merges that leave this tensor out: any of ``add``, ``mul``, ``cat``, ``bypass``.
        copies: whether the merge returns a copy, needed if a later layer writes into the result in place.
        moved: whether the dtype changed since the proof; the dtype then promotes the result of a sum.
    """

    merges: frozenset[str] = frozenset()
    copies: bool = False
    moved: bool = False
    merge_log: Callable[[str], None] | None = None

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_described():
            return super().__torch_function__(func, cast(Any, types), cast(Any, args), kwargs)
        raw, name = raw_name(func), op_name(func)
        if raw in _PLAIN or name in _PLAIN or raw in _SILENT or (name == "type" and len(args) == 1 and not kwargs):
            return super().__torch_function__(func, cast(Any, types), cast(Any, args), kwargs)
        if raw in ANSWERED and looks_on(func):
            return answer(raw, args[1:] or kwargs, _dropped_among(args, kwargs).dtype)
        if raw in _UNKNOWN or name in _UNKNOWN:
            raise DroppedTensorError(f"a forward reads '{name}' of a tensor that this removal drops")
        if kwargs.get("out") is not None:
            raise DroppedTensorError(f"'{name}' writes a dropped tensor into an out= argument")
        token = _dropped_among(args, kwargs)
        if merge_label(name) in token.merges:
            return _merge(func, name, raw, token, args, kwargs)
        if _writes_into_live(raw, args):
            raise DroppedTensorError(f"'{name}' writes a dropped tensor into one that stays")
        return _spread(name, token, args, kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}({_words(self.merges)})"

    def __format__(self, format_spec: str) -> str:
        return format(math.nan, format_spec) if format_spec else repr(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> DroppedTensor:
        return dropped(self.merges, self.copies, self.dtype, self.moved)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dropped, (sorted(self.merges), self.copies, self.dtype, self.moved)


def dropped(
    merges: Iterable[str], copies: bool = False, dtype: torch.dtype = torch.float32, moved: bool = False
) -> DroppedTensor:
    """Make a dropped tensor that these merges leave out.

    Raises:
        DroppedTensorError: a merge is an op that is not registered, so it would not leave the tensor out.
    """
    merges = tuple(merges)
    if unknown := min((label for label in merges if not is_merge_label(label)), default=""):
        raise DroppedTensorError(
            f"a removed tensor is left out by {unknown!r:.80}: call register_op() for it, with merge="
        )
    with no_modes():  # because it is a constant of the pruned model, not a traced value
        token = torch.zeros((), dtype=dtype).as_subclass(DroppedTensor)
    token.merges = frozenset(merges)
    token.copies = copies
    token.moved = moved
    token.merge_log = None
    return token


def _words(merges: Iterable[str]) -> str:
    return f"out of {'/'.join(sorted(merges)) or 'use'}"


def is_described() -> bool:
    """Whether torch.compile describes the tensors of a trace; the traced forward itself does not get here."""
    if torch.compiler.is_dynamo_compiling() or not is_tracing():
        return False
    if is_strict_export():  # its graphs hold plain tensors only
        raise DroppedTensorError(
            "torch.export with strict=True takes a dropped tensor for a number; leave strict at False, its default"
        )
    return True


def _writes_into_live(raw: str, args: Sequence[Any]) -> bool:
    """Whether a function writes in place into its first argument, a tensor that stays."""
    writes = raw == "__setitem__" or (raw.startswith("__i") and raw != "__invert__") or (raw[-1:] == "_" != raw[:1])
    return writes and bool(args) and isinstance(args[0], Tensor) and not isinstance(args[0], DroppedTensor)


def _note(token: DroppedTensor, kind: str) -> None:
    if token.merge_log is not None:
        token.merge_log(kind)


def _dropped_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> DroppedTensor:
    """The dropped argument that the result stands for: the first one that a merge leaves out, if any.

    In ``gamma * branch(x)`` both may be dropped, and the merge behind leaves out the branch.
    """
    found: list[DroppedTensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, DroppedTensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in cast("Sequence[Any]", value) if isinstance(item, DroppedTensor)]
    for token in found:
        if token.merges:
            return token
    if not found:
        raise DroppedTensorError("a dropped tensor reached a function inside an argument that cannot be searched")
    return found[0]


def _merge(
    func: Callable[..., Any], name: str, raw: str, token: DroppedTensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    merge = traits_of(name).merge
    if merge == "cat":
        key = next((key for key, value in kwargs.items() if isinstance(value, (list, tuple))), "tensors")
        operands = cast("Sequence[Any]", args[0] if args else kwargs[key])
        kept = [t for t in operands if not isinstance(t, DroppedTensor)]
        if not kept:
            return token
        _note(token, merge_label(name))
        joined = func(kept, *args[1:], **kwargs) if args else func(**{**kwargs, key: kept})
        return _widened(joined, token)
    operands = [*args, *kwargs.values()]
    if merge == "bypass":
        operands = [args[0]] if args else [kwargs["input"]]
    kept = [t for t in operands if isinstance(t, Tensor) and not isinstance(t, DroppedTensor)]
    if not kept:
        return token
    if traits_of(name).is_left_only and isinstance(args[0], DroppedTensor):
        raise DroppedTensorError("the left side of a subtraction cannot be dropped: what remains would change its sign")
    _note(token, merge_label(name))
    if _writes_into_live(raw, args):
        return kept[0]
    merged = kept[0] if merge == "bypass" else _widened(kept[0], token)
    return merged.clone() if token.copies and merged is kept[0] else merged


def _widened(merged: Tensor, token: DroppedTensor) -> Tensor:
    """Convert the result of a merge to the dtype that the dropped operand would promote it to."""
    if not token.moved or not merged.is_floating_point():
        return merged
    return merged.to(torch.promote_types(merged.dtype, token.dtype))


def _spread(name: str, token: DroppedTensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Result of a function of a dropped tensor, in the function's output structure."""
    if name == "chunk":
        return tuple([token] * int(args[1] if len(args) > 1 else kwargs["chunks"]))
    if name in ("split", "unsafe_split"):
        sizes = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections", kwargs.get("split_size"))
        if isinstance(sizes, int):
            return _Pieces(token)
        return tuple([token] * len(cast("Sequence[int]", sizes)))
    if name in ("multi_head_attention_forward",):
        return token, token
    return _cast(name, token, args, kwargs) if token.moved and traits_of(name).is_cast else token


def _cast(name: str, token: DroppedTensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> DroppedTensor:
    """A dropped tensor with the dtype that the forward casts it to."""
    with no_function_subclasses():
        plain = torch.zeros((), dtype=token.dtype)
        cast_to = getattr(plain, name)(*args[1:], **kwargs).dtype
    return token if cast_to == token.dtype else dropped(token.merges, token.copies, cast_to, moved=True)


class _Pieces(Sequence[Any]):
    """A dropped tensor split into pieces of a given size: their number is unknown."""

    def __init__(self, token: DroppedTensor) -> None:
        self.token = token

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise DroppedTensorError("a forward takes a range of the pieces of a dropped tensor")
        return self.token

    def __iter__(self) -> Any:
        raise DroppedTensorError("a forward unpacks a dropped tensor that it has split into pieces of a given size")

    def __len__(self) -> int:
        raise DroppedTensorError("a forward counts the pieces of a dropped tensor")


def dropped_tensors(model: nn.Module) -> list[DroppedTensor]:
    """Dropped tensors in the attributes of a model's modules."""
    return [value for module in model.modules() for value in vars(module).values() if type(value) is DroppedTensor]


@contextmanager
def watching_merges(tokens: Sequence[DroppedTensor], names: Mapping[int, str]) -> Generator[list[tuple[str, str]]]:
    """Record the merges that leave dropped tensors out: their kind and their caller.

    Args:
        tokens: the dropped tensors.
        names: id of each module → its name; see :func:`caller`.
    """
    log: list[tuple[str, str]] = []
    for token in tokens:
        token.merge_log = lambda kind: log.append((kind, caller(names)))
    try:
        yield log
    finally:
        for token in tokens:
            token.merge_log = None


class DroppedBranch(StandIn, FollowsCasts):
    """Stand-in that returns dropped tensors, in the output structure of the removed module.

    They have the dtype of the model's weights, because callers may convert other tensors to it. It follows ``half()``.
    """

    def __init__(
        self,
        merges: Iterable[str],
        structure: Structure = "tensor",
        copies: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.token = dropped(merges, copies, dtype)
        self.output = OutputTree.from_json(structure)

    def follow(self, cast_of: Callable[[Tensor], Tensor]) -> None:
        """Hand on a dropped tensor of the type that the model computes in from now on."""
        made = cast_of(torch.zeros((), dtype=self.token.dtype))
        if made.dtype != self.token.dtype:
            self.token = dropped(self.token.merges, self.token.copies, made.dtype, moved=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _built(self.output, self.token, None, args, kwargs)

    def extra_repr(self) -> str:
        return self.with_place(_words(self.token.merges))


class PassThrough(StandIn):
    """Stand-in that returns one of its arguments.

    Args:
        position: the argument's position in the call.
        keyword: its name, for callers that pass it by keyword; None if it has none.
        structure: output of the removed module, with ``"argument"`` and ``"tensor"`` (a dropped tensor) as leaves.
        copies: whether to return a copy, needed if a later layer writes into it in place.
    """

    def __init__(
        self, position: int | None, keyword: str | None, structure: Structure = "argument", copies: bool = False
    ) -> None:
        super().__init__()
        self.position = position
        self.keyword = keyword
        self.output = OutputTree.from_json(structure)
        self.copies = copies
        self.token = None if structure == "argument" else dropped(())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        value = pick(self.position, self.keyword, args, kwargs)
        if self.copies:
            value = _copied(value)
            args, kwargs = tuple(map(_copied, args)), {key: _copied(other) for key, other in kwargs.items()}
        return _built(self.output, self.token, value, args, kwargs)

    def extra_repr(self) -> str:
        return self.with_place(f"argument {self.position if self.keyword is None else self.keyword}")


def _built(
    output: OutputTree[StandInLeaf], token: Any, argument: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Output of a stand-in, from a dropped tensor, the argument that it returns, and other arguments of the call."""

    def at(leaf: StandInLeaf) -> Any:
        if isinstance(leaf, tuple):
            return pick(*leaf, args, kwargs)
        return token if leaf == "tensor" else argument

    return output.build(at)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and not isinstance(value, DroppedTensor) else value


class SkipsDropped(nn.Module):
    """Wraps a module without parameters, and returns dropped tensors without a call of it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        token = next((value for value in (*args, *kwargs.values()) if isinstance(value, DroppedTensor)), None)
        return self.inner(*args, **kwargs) if token is None else token


#: Stand-ins that compute nothing.
STAND_INS = (DroppedBranch, PassThrough, SkipsDropped)
