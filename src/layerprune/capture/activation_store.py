"""Keeps activations of a recorded forward, so that the forward need not run again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from layerprune.modules import storage_key


class ActivationStore:
    """What modules with weights return, sums, and views of these, each as it was then, whatever is written there later.

    That is what a transform feeds, nearly always; to hold all that a forward makes takes longer than a good part of
    another forward, as no memory is used twice. Of what functions make within a layer, only what leaves it is held.

    Args:
        most_bytes: what the tensors may take. Of a forward that makes more none are held.

    Attributes:
        tensors: value → tensor.
        output: what the model has returned; None as long as it has not.
        is_full: whether no more tensors are held.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.clear()

    def clear(self) -> None:
        """Forget everything, for another try."""
        self.tensors: dict[int, Tensor] = {}
        self.output: Any = None
        self.num_bytes = 0
        self._values_in: dict[int, set[int]] = {}  # storage → values
        self.is_full = self.most_bytes <= 0

    def lies_beside(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in memory of which something is held already."""
        return storage_key(tensor) in self._values_in

    def keep(self, value: int, tensor: Tensor) -> None:
        """Hold a tensor."""
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
        """Let go of tensors that nobody will ask for."""
        for value in values:
            if (tensor := self.tensors.pop(value, None)) is not None:
                key = storage_key(tensor)
                self._values_in[key].remove(value)
                if not self._values_in[key]:
                    del self._values_in[key]
                    self.num_bytes -= _num_bytes(tensor)

    def before_write(self, written: Iterable[Tensor]) -> None:
        """Copy what is held of memory that is about to be written into."""
        for tensor in written:
            copies = {value: self.tensors[value].clone() for value in self._values_in.get(storage_key(tensor), ())}
            self.forget(copies)
            for value, copy in copies.items():
                self.keep(value, copy)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
