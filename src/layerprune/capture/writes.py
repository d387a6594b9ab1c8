"""Undoes writes of a forward into the parameters and buffers of its model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.modules import storage_key
from layerprune.tensors import written_tensors
from layerprune.torch_internals import DispatchMode

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


class Writes:
    """Undoes writes of forwards into tensors, through any alias: ``parameter.data``, a view, a new memory.

    With ``known``, the forward is known to write into all of them: they are copied at the start, and no operation is
    observed. Otherwise each is copied before the first operation that writes into it. Writes past torch's dispatcher (a
    NumPy array of a tensor's memory, a kernel called by its address) are not seen.
    """

    def __init__(self, tensors: Iterable[Tensor], *, known: bool) -> None:
        self._tensors = [tensor for tensor in tensors if not tensor.is_meta]
        self._known = known
        self._seen = list(self._tensors) if known else []

    @contextmanager
    def taken_back(self, *, seen_only: bool = False) -> Generator[None]:
        """Run forwards inside; at the end all tensors have their memory and values back.

        With ``seen_only``, only tensors written into before are restored, and no operation is observed.
        """
        at_once = self._known or seen_only
        tensors = self._seen if at_once else self._tensors
        by_memory = {storage_key(tensor): tensor for tensor in tensors}
        places = [(tensor, tensor.detach()) for tensor in tensors if _is_plain(tensor)]
        kept = dict[int, Callable[[], object]]()

        def keep(key: int) -> None:
            if key in by_memory and key not in kept:
                kept[key] = _restoring(by_memory[key])

        try:
            if at_once:
                for key in by_memory:
                    keep(key)
                yield
            else:
                with _Guard(lambda written: keep(storage_key(written))):
                    yield
        finally:
            moved = [pair for pair in places if _place(pair[0]) != _place(pair[1])]
            for tensor, place in moved:
                tensor.data = place
            for restore in kept.values():
                restore()
            if not at_once:
                known = {id(tensor) for tensor in self._seen}
                found = [*(by_memory[key] for key in kept), *(tensor for tensor, _ in moved)]
                self._seen += [tensor for tensor in found if id(tensor) not in known]


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


class _Guard(DispatchMode):
    """Passes each tensor to a callback before an operation writes into it."""

    def __init__(self, keep: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._keep = keep

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for written in written_tensors(func, args, kwargs):
            self._keep(written)
        return func(*args, **kwargs)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in _PLAIN and tensor.layout is torch.strided and not tensor.is_quantized


def _restoring(tensor: Tensor) -> Callable[[], object]:
    """A function that restores the present values of a tensor, without counting a write."""
    if _is_plain(tensor):
        memory = tensor.untyped_storage()  # whole memory: other tensors may be views of it
        values = memory.clone()
        return lambda: memory.copy_(values)
    own, copy = tensor.detach(), tensor.detach().clone()
    return lambda: own.copy_(copy)
