"""Refuses models that cannot be captured, and says which model to prune instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from layerprune.errors import UnsupportedModelError
from layerprune.torch_internals import PACKED_WEIGHTS, tensors_of

# torch classes that shard weights over processes; by name, because importing them is slow.
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def check_module(model: object) -> None:
    """Raise :class:`UnsupportedModelError` if ``model`` is not a module, but a class, a pruner or a plan, say."""
    if isinstance(model, nn.Module):
        return
    got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    more = "; its attribute .model is one" if isinstance(getattr(model, "model", None), nn.Module) else ""
    raise UnsupportedModelError(f"expected a torch.nn.Module, got {got}{more}: make an instance, and pass that")


def check_supported(model: object) -> None:
    """Refuse models that cannot be captured.

    Args:
        model: the user's model.

    Raises:
        UnsupportedModelError: it is no module, or has scripted, exported, lazy, packed, offloaded or sharded parts.
    """
    check_module(model)
    assert isinstance(model, nn.Module)
    for name, module in model.named_modules():
        where, kind = f"'{name}'" if name else "the model", type(module).__name__
        for why in _reasons(module):
            raise UnsupportedModelError(f"{where} {why.format(kind=kind)}")


def _reasons(module: nn.Module) -> Iterator[str]:
    if isinstance(module, torch.jit.ScriptModule):
        yield (
            "is a TorchScript module ({kind}): its forward is compiled and cannot be edited; "
            "pass the Python module that it was scripted from"
        )
    if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):
        yield (
            "is what torch.export made ({kind}): its mode is fixed, and it calls no layers; "
            "prune the module that was exported, then export what is left"
        )
    if any(hasattr(module, name) for name in PACKED_WEIGHTS):
        yield (
            "is a quantised {kind}, whose weights are packed and no parameters: "
            "prune the float model, then quantise what is left"
        )
    if any(getattr(hook, "offload", False) for hook in _hooks(vars(module).get("_hf_hook"))):
        yield (
            "has offloaded weights: accelerate's hooks bring those of {kind} only while it runs; "
            "load the model without offloading, prune it, then offload what is left"
        )
    if any(base.__name__ in _SHARDED and base.__module__.startswith("torch.") for base in type(module).__mro__):
        yield "is sharded ({kind}): a process holds a part of each weight; prune the model, then shard what is left"
    for key, tensor in tensors_of(module):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            yield f"is lazy: its '{key}' has no shape yet; run one forward on real inputs first, then prune"
        if hasattr(tensor, "ds_id") or type(getattr(tensor, "data", None)).__name__ == "DTensor":
            yield (
                f"holds '{key}' sharded over processes, of which this one has a part; "
                "prune the model, then shard what is left"
            )


def _hooks(hook: Any) -> Iterator[Any]:
    inside = cast("tuple[Any, ...]", getattr(hook, "hooks", ()))
    yield hook
    for one in inside:
        yield from _hooks(one)
