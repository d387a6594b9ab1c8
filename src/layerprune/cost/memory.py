"""Bytes of parameters, of activations at their peak, and of the key-value cache per token."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.adapters import by_name, cache_growth, generates, may_cache
from layerprune.capture import Sandbox
from layerprune.cost.sandbox_forward import on_sandbox
from layerprune.inputs import Inputs
from layerprune.modules import buffers, parameters
from layerprune.tensors import flat_tensors
from layerprune.torch_internals import DispatchMode, is_wrapper_subclass, sparse_parts, storage_id


def param_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's parameters in their own dtypes; tied ones count once."""
    return sum(_nbytes(parameter) for parameter in parameters(model))


def buffer_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's buffers, with those that are not saved; shared ones count once."""
    return sum(_nbytes(buffer) for buffer in buffers(model))


def _nbytes(tensor: Tensor) -> int:
    """A tensor's size; for a wrapper, such as a quantised weight, the size of its parts."""
    if not is_wrapper_subclass(tensor):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(_nbytes(getattr(tensor, name)) for name in names)


def activation_peak_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Measure the peak of the bytes that tensors of a forward hold.

    The forward runs in eval mode without gradients, on fake tensors with the lifetimes of real ones, or on real tensors
    where fake ones fail. Outputs and caches count; parameters, buffers, inputs, workspaces of kernels and rounding by
    the allocator do not. A mixture of experts of transformers runs batched, so gathered weights count, far more than
    its own kernels need. Masks that a forward drops after a look at their values count on fake tensors.

    Args:
        model: any module, original or pruned; it is not changed.
        inputs: arguments that its forward takes; their sizes count.

    Returns:
        The peak in bytes.

    Raises:
        CostError: the forward raises on these inputs.
    """
    return on_sandbox(model, inputs, lambda shade: _peak(shade, inputs))


def _peak(shade: Sandbox, inputs: Inputs) -> int:
    tracker = _Lifetimes()
    shade.forward(inputs, tracker, fast_path=False)
    return tracker.peak


class _Lifetimes(DispatchMode):
    """Follows storages that operations create, until their last reference is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {key for tensor in flat_tensors((args, kwargs)) for key, _ in _storages(tensor)}
        out = func(*args, **kwargs)
        for tensor in flat_tensors(out):
            for key, storage in _storages(tensor):
                if key in self._held or key not in given:  # otherwise a parameter, an input, or a view of these
                    self._hold(key, storage)
        self.peak = max(self.peak, self.live)
        return out

    def _hold(self, key: int, storage: torch.UntypedStorage) -> None:
        """Add a storage; a known storage may have been resized."""
        known = self._held.get(key)
        reference = weakref.ref(storage, lambda _: self._release(key)) if known is None else known[0]
        size = storage.nbytes()
        self.live += size - (0 if known is None else known[1])
        self._held[key] = (reference, size)

    def _release(self, key: int) -> None:
        _, size = self._held.pop(key)
        self.live -= size


def _storages(tensor: Tensor) -> list[tuple[int, torch.UntypedStorage]]:
    """The storages of a tensor, with keys that are unique during their lives."""
    if tensor.layout is torch.strided:
        return [(storage_id(tensor), tensor.untyped_storage())]
    if tensor.layout is torch.sparse_coo:
        return [pair for part in sparse_parts(tensor) for pair in _storages(part)]
    return []


def kv_cache_bytes_per_token(model: nn.Module, inputs: Inputs) -> int | None:
    """Measure the growth of a transformers model's key-value cache for one more token of one sequence, in bytes.

    Two generation steps run on fake tensors: the inputs fill a cache, then one token is added. The number holds at the
    inputs' length: attention in a full window does not grow.

    Args:
        model: original or pruned model; it is not changed.
        inputs: arguments that its forward takes.

    Returns:
        The bytes; None where the model keeps no cache, or the inputs are no tokens.

    Raises:
        CostError: the forward raises on these inputs, or with the cache.
    """
    named = by_name(model, inputs)
    if named is None or not may_cache(model, named):
        return None

    def grown(shade: Sandbox) -> int | None:
        return cache_growth(shade.model, shade.adapt(named), shade.running, prepared=generates(shade.model))

    growth = on_sandbox(model, named, grown)
    tokens = named.kwargs.get("decoder_input_ids", named.kwargs.get("input_ids"))
    return None if growth is None else growth // tokens.shape[0]
