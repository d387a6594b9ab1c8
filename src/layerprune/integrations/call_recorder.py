"""Keeps the inputs of the last forwards of a model in training, as calibration data."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.tensors import map_tensors


class CallRecorder:
    """Records the arguments of the last forwards of a model, in train mode.

    Args:
        model: the model.
        num_calls: how many forwards are kept.
        without: names of arguments that are left out, such as labels.
    """

    def __init__(self, model: nn.Module, num_calls: int, without: Collection[str] = ()) -> None:
        self._calls: deque[Any] = deque(maxlen=num_calls)
        self._without = frozenset(without)
        self._model = model
        self._hook = model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training:
            return
        kept = {name: value for name, value in kwargs.items() if name not in self._without}
        if kept and args:
            bound = inspect.signature(module.forward).bind_partial(*args).arguments
            kept, args = {**bound, **kept}, ()
        self._calls.append(map_tensors(kept or args, _copy))

    @property
    def calls(self) -> list[Any]:
        """The arguments of the last forwards: tuples (positional) or dicts (keyword)."""
        return list(self._calls)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Take the hook away, so that it is no part of copies of the model."""
        self._hook.remove()
        try:
            yield
        finally:
            self._hook = self._model.register_forward_pre_hook(self._record, with_kwargs=True)

    def close(self) -> None:
        """Stop recording, and let go of what was recorded."""
        self._hook.remove()
        self._calls.clear()


def _copy(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.detach().clone()
