"""Keeps activations of a recorded forward, so that the forward need not run again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from layerprune.modules import storage_key


class ActivationStore:
    """Activations of a recorded forward as they were: results of modules with weights, sums, and views of these.

    Holding all activations would cost a good part of another forward in time, because no memory is reused. Of a layer's
    inner functions only results that leave the layer are held. A forward of more than ``most_bytes`` keeps none.

    Attributes:
        tensors: value → tensor.
        output: the model's output; None until it returns.
        is_full: whether no more tensors are held.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.clear()

    def clear(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        self.output: Any = None
        self.num_bytes = 0
        self._values_in: dict[int, set[int]] = {}  # storage → values
        self.is_full = self.most_bytes <= 0

    def lies_beside(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._values_in

    def keep(self, value: int, tensor: Tensor) -> None:
        key = storage_key(tensor)
        if self.is_full or value in self.tensors:
            return
        if key not in self._values_in:
            self.num_bytes += _num_bytes(tensor)
        self._values_in.setdefault(key, set()).add(value)
        self.tensors[value] = tensor
        if self.num_bytes > self.most_bytes:
            self.clear()
            self.is_full = True

    def forget(self, values: Iterable[int]) -> None:
        """Release tensors that are no longer needed."""
        for value in values:
            if (tensor := self.tensors.pop(value, None)) is not None:
                key = storage_key(tensor)
                self._values_in[key].remove(value)
                if not self._values_in[key]:
                    del self._values_in[key]
                    self.num_bytes -= _num_bytes(tensor)

    def before_write(self, written: Iterable[Tensor]) -> None:
        """Copy held tensors in memory that is about to be written into."""
        for tensor in written:
            copies = {value: self.tensors[value].clone() for value in self._values_in.get(storage_key(tensor), ())}
            self.forget(copies)
            for value, copy in copies.items():
                self.keep(value, copy)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
