"""Dictionaries with tensors as keys."""

from __future__ import annotations

import weakref

from torch import Tensor

from layerprune.stand_ins import DroppedTensor
from layerprune.torch_internals import storage_id


def storage_key(tensor: Tensor) -> int:
    """Identifies a tensor's memory while it lives; a tensor without a storage (sparse, opaque) gets its own key."""
    if type(tensor) is not Tensor and isinstance(tensor, DroppedTensor):  # an earlier surgery left it
        return -id(tensor)
    try:
        return storage_id(tensor)
    except (NotImplementedError, RuntimeError):
        return -id(tensor)


class StrongTensorKeys:
    """Dictionary with tensors as keys; it keeps them alive, so that their ids stay unique."""

    def __init__(self) -> None:
        self.values: dict[int, tuple[Tensor, int]] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self.values

    def __getitem__(self, tensor: Tensor) -> int:
        return self.values[id(tensor)][1]

    def __setitem__(self, tensor: Tensor, value: int) -> None:
        self.values[id(tensor)] = (tensor, value)

    def get(self, tensor: Tensor) -> int | None:
        found = self.values.get(id(tensor))
        return None if found is None else found[1]


class WeakTensorKeys:
    """Dictionary with weak references to tensors as keys; it detects ids that a later tensor has reused."""

    def __init__(self) -> None:
        self.values: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return self.get(tensor) is not None

    def __getitem__(self, tensor: Tensor) -> int:
        value = self.get(tensor)
        if value is None:
            raise KeyError(tensor)
        return value

    def __setitem__(self, tensor: Tensor, value: int) -> None:
        self.values[id(tensor)] = (weakref.ref(tensor), value)

    def get(self, tensor: Tensor) -> int | None:
        found = self.values.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None
