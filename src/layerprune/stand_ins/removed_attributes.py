"""Attributes of removed modules that other modules still read.

A forward may read submodules of a module before it calls the module: ``nn.TransformerEncoderLayer`` collects their
weights to choose between two implementations. Numbers and flags keep their values. A removed weight is a tensor without
values, which can be passed as an argument but not computed with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.errors import DroppedTensorError
from layerprune.stand_ins.base import Shown
from layerprune.stand_ins.class_members import class_values, is_plain, kept_members
from layerprune.stand_ins.dropped_tensor import DroppedTensor, is_described
from layerprune.stand_ins.observers import looks_on
from layerprune.tensors import raw_name
from layerprune.torch_internals import buffers_of, children_of, no_modes, parameters_of

_SILENT = frozenset({"requires_grad", "__repr__", "__format__", "__hash__", "__set__"})


class RemovedValue(DroppedTensor):
    """A parameter or buffer of a removed module: one object for all of them, without a dtype or a device."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        read = raw_name(func)
        if read in _SILENT or is_described() or looks_on(func):
            return super().__torch_function__(func, types, args, kwargs)
        # Not even its dtype, which would be wrong after a later conversion of the pruned model.
        raise DroppedTensorError(f"a forward takes '{read}' of a weight that this removal takes away")

    def __deepcopy__(self, memo: dict[int, Any]) -> RemovedValue:
        return REMOVED_VALUE

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _gone, ()


def _gone() -> RemovedValue:
    return REMOVED_VALUE


def _make() -> RemovedValue:
    with no_modes():
        token = torch.zeros(()).as_subclass(RemovedValue)
    token.merges, token.copies, token.merge_log = frozenset[str](), False, None
    return token


REMOVED_VALUE = _make()


class RemovedModule(Shown):
    """A submodule of a removed module: has its attributes, and cannot be called."""

    def __init__(self, shown: Mapping[str, Any]) -> None:
        vars(self).update(shown)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.missing(name)

    def __getstate__(self) -> dict[str, Any]:
        return self.portable()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise DroppedTensorError("a forward calls a part of a module that this removal takes away")


def plain(module: nn.Module) -> dict[str, Any]:
    """Plain attributes of a module and of its class, by name."""
    own = {key: value for key, value in vars(module).items() if key not in _MACHINERY and is_plain(value, deep=False)}
    own["training"] = module.training
    return class_values(type(module)) | {key: copy.copy(value) for key, value in own.items()}


def shown(module: nn.Module, place: str, gone: Tensor = REMOVED_VALUE) -> dict[str, Any]:
    """Attributes of a stand-in: plain values, kept methods, stand-ins of submodules, and ``gone`` for each tensor."""
    tensors = {**parameters_of(module), **buffers_of(module)}
    parts = {
        key: None if part is None else RemovedModule(shown(part, f"{place}.{key}", gone))
        for key, part in children_of(module).items()
    }
    kept, held = kept_members(module), vars(module)
    return {
        **plain(module),
        **{name: held[name] for name in sorted(frozenset().union(*kept.values())) if name in held},
        **{key: None if tensor is None else gone for key, tensor in tensors.items()},
        **parts,
        **{"_former": type(module) if kept else None, "_kept": frozenset(kept), "_place": place},
    }


_MACHINERY = frozenset(vars(nn.Module()))
