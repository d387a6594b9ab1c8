"""The memory that tensors take while a block runs, counted storage by storage as operations make and drop them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of what operations make inside ``with``; what was there before (a model's weights) not.

    Attributes:
        now: bytes that are alive.
        peak: the most that were alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.note(tensor, made=False)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.note(tensor, made=True)
        return out

    def note(self, tensor: Tensor, *, made: bool) -> None:
        storage: Any = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        size = storage.nbytes() if made else 0

        def gone(_: Any) -> None:
            del self.known[key]
            self.now -= size

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_of(run: Any) -> int:
    """The most bytes alive at a time while a function runs, its inputs not counted."""
    with LiveBytes() as counter:
        kept = run()
    del kept
    return counter.peak


def test_itself() -> None:
    """A megabyte that is dropped and one that an autograd graph keeps."""
    x = torch.zeros(1 << 18, requires_grad=True)
    with LiveBytes() as counter:
        (x.detach() + 1).sum()
        assert counter.peak >> 20 == 1
        assert counter.now < 1 << 20
        y = (x * 2).exp()  # keeps its result, for the backward
        assert counter.now >> 20 == 1
        del y
        assert counter.now < 1 << 20


if __name__ == "__main__":
    test_itself()
