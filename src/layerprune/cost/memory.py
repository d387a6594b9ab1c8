"""Bytes of parameters, of activations at their peak, and of the key-value cache for one more token."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.adapters import by_name, cache_growth, generates, may_cache
from layerprune.capture import Sandbox
from layerprune.cost.sandbox_forward import on_sandbox, run
from layerprune.inputs import Inputs
from layerprune.modules import buffers, parameters
from layerprune.tensors import flat_tensors
from layerprune.torch_internals import DispatchMode, is_wrapper_subclass, sparse_parts, storage_id


def param_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's parameters, each in its own dtype, tied ones once."""
    return sum(_nbytes(parameter) for parameter in parameters(model))


def buffer_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's buffers, shared ones once, those that are not saved with it too."""
    return sum(_nbytes(buffer) for buffer in buffers(model))


def _nbytes(tensor: Tensor) -> int:
    """A tensor's size; of one that packs others, a quantised weight say, theirs."""
    if not is_wrapper_subclass(tensor):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(_nbytes(getattr(tensor, name)) for name in names)


def activation_peak_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Measure how many bytes the tensors that one forward makes hold at once, at the most.

    One forward in eval mode without grad, on fake tensors, whose lifetimes are those of real ones; where fake ones
    cannot go, on real ones. Outputs count, and what is cached on the way; parameters, buffers and inputs do not, nor
    what a kernel needs inside itself, nor what an allocator rounds up. A mixture of experts of transformers runs
    batched, and then the weights that it gathers count: far more than its own kernels need. Masks that a forward leaves
    out when it has seen their values are there on fake tensors.

    Args:
        model: any module; original or pruned. It stays as it is.
        inputs: arguments that its forward takes; their sizes count.

    Raises:
        CostError: the forward raises on these inputs.
    """
    return on_sandbox(model, inputs, _peak)


def _peak(shade: Sandbox, inputs: Inputs) -> int:
    tracker = _Lifetimes()
    with shade.running(), tracker:
        run(shade, inputs)
    return tracker.peak


class _Lifetimes(DispatchMode):
    """Follows the storages that operations make, from the operation to the last reference.

    Attributes:
        live: bytes that are held now.
        peak: the most that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and take in what it made."""
        kwargs = kwargs or {}
        given = {key for tensor in flat_tensors((args, kwargs)) for key, _ in _storages(tensor)}
        out = func(*args, **kwargs)
        for tensor in flat_tensors(out):
            for key, storage in _storages(tensor):
                if key in self._held or key not in given:  # else of a parameter or an input, or a view of one
                    self._hold(key, storage)
        self.peak = max(self.peak, self.live)
        return out

    def _hold(self, key: int, storage: torch.UntypedStorage) -> None:
        """Take a storage in; one that is known may have been resized."""
        known = self._held.get(key)
        reference = weakref.ref(storage, lambda _: self._release(key)) if known is None else known[0]
        size = storage.nbytes()
        self.live += size - (0 if known is None else known[1])
        self._held[key] = (reference, size)

    def _release(self, key: int) -> None:
        _, size = self._held.pop(key)
        self.live -= size


def _storages(tensor: Tensor) -> list[tuple[int, torch.UntypedStorage]]:
    """The storages behind a tensor, each with the key that it has while it lives."""
    if tensor.layout is torch.strided:
        return [(storage_id(tensor), tensor.untyped_storage())]
    if tensor.layout is torch.sparse_coo:
        return [pair for part in sparse_parts(tensor) for pair in _storages(part)]
    return []


def kv_cache_bytes_per_token(model: nn.Module, inputs: Inputs) -> int | None:
    """Measure how many bytes the key-value cache of a transformers model grows by for one more token of one sequence.

    Two steps of generation run on fake tensors: one that fills a cache from the inputs, and one with a token more. So
    the number holds at the inputs' length: attention within a window grows no further once that is full.

    Args:
        model: original or pruned. It stays as it is.
        inputs: arguments that its forward takes.

    Returns:
        The bytes, or None where the model keeps no cache, or reads no tokens in these inputs.

    Raises:
        CostError: the forward raises on these inputs, or with the cache that it made of them.
    """
    named = by_name(model, inputs)
    if named is None or not may_cache(model, named):
        return None

    def grown(shade: Sandbox, inputs: Inputs) -> int | None:
        return cache_growth(shade.model, inputs, shade.running, prepared=generates(shade.model))

    growth = on_sandbox(model, named, grown)
    tokens = named.kwargs.get("decoder_input_ids", named.kwargs.get("input_ids"))
    return None if growth is None else growth // tokens.shape[0]
