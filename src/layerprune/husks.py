"""Husks: what a removed module still shows to those who read its attributes in passing.

A forward may look at the parts of a module that it is about to call: ``nn.TransformerEncoderLayer`` gathers the weights
of its parts to decide between two ways to compute the same. Numbers and flags stay as they were; a weight that is gone
is a tensor without values, which may be passed around, and computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from layerprune.dropped import Dropped, is_described, raw_name
from layerprune.errors import DroppedTensorError

_SILENT = frozenset({"requires_grad", "__repr__", "__format__", "__hash__", "__set__"})
_PLAIN = (bool, int, float, str, type(None))


class Gone(Dropped):
    """A parameter or buffer of a removed module. There is one object for all of them, of no type and on no device."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        read = raw_name(func)
        if read in _SILENT or is_described():
            return super().__torch_function__(func, types, args, kwargs)
        # Not even its type: that may change later, when the pruned model is converted.
        raise DroppedTensorError(f"a forward takes '{read}' of a weight that this removal takes away")

    def __deepcopy__(self, memo: dict[int, Any]) -> Gone:
        return GONE

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _gone, ()


def _gone() -> Gone:
    return GONE


def _make() -> Gone:
    with _disable_current_modes():
        token = torch.zeros(()).as_subclass(Gone)
    token.merges, token.copies, token.merge_log = frozenset[str](), False, None
    return token


GONE = _make()


class Husk:
    """Stands for a part of a removed module: it has the part's attributes, and cannot be called."""

    def __init__(self, shown: Mapping[str, Any]) -> None:
        vars(self).update(shown)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse.

        Raises:
            DroppedTensorError: always.
        """
        raise DroppedTensorError("a forward calls a part of a module that this removal takes away")


def plain(module: nn.Module) -> dict[str, Any]:
    """A module's numbers, flags and strings, by name."""
    return {key: value for key, value in vars(module).items() if isinstance(value, _PLAIN)}


def shown(module: nn.Module) -> dict[str, Any]:
    """What a module's stand-in shows: plain attributes, dropped tensors for tensors, husks for parts."""
    tensors = {**module._parameters, **module._buffers}
    parts = {key: None if part is None else Husk(shown(part)) for key, part in module._modules.items()}
    return {**plain(module), **{key: None if tensor is None else GONE for key, tensor in tensors.items()}, **parts}
