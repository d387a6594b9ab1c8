"""Keeps activations of a recorded forward, so that the forward need not run again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from layerprune.modules import storage_key
from layerprune.tensors import same_tensor
from layerprune.torch_internals import no_modes


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


class Shared(ActivationStore):
    """What a recorded forward makes just as another model's has made it of the same inputs, up to the first difference.

    Nothing is held for that.

    Args:
        other: what the other model's forward has shown.

    Attributes:
        values: the values that are known to be the same: they have the same numbers, and the same bits.
    """

    def __init__(self, other: ActivationStore) -> None:
        self.other = other
        self.values: set[int] = set()
        super().__init__(0)

    def clear(self) -> None:
        """Forget everything, for another try."""
        super().clear()
        self.values.clear()
        self.is_full = not self.other.tensors

    def keep(self, value: int, tensor: Tensor) -> None:
        """Compare a tensor with the other model's; behind the first that differs none is looked at."""
        before = self.other.tensors.get(value)
        if before is None:  # it was let go, as nothing outside a layer reads it
            return
        with no_modes():
            alike = same_tensor(tensor, before)
        if alike:
            self.values.add(value)
        else:
            self.is_full = True

    def lies_beside(self, tensor: Tensor) -> bool:
        """Whether to look at a tensor that is no result of a module with weights, and no sum: what is known tells."""
        return True

    def forget(self, values: Iterable[int]) -> None:
        """Let go of values that nobody will ask for."""
        self.values.difference_update(values)

    def before_write(self, written: Iterable[Tensor]) -> None:
        """Nothing: no tensor is held."""


def _num_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
