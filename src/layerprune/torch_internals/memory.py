"""The memory behind tensors, and how often it was written into."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

#: Whether a tensor packs others, as quantised and distributed weights do.
is_wrapper_subclass = is_traceable_wrapper_subclass


def storage_id(tensor: Tensor) -> int:
    """What names a tensor's memory for as long as that lives; of fake and meta tensors too, whose data_ptr is 0."""
    return tensor.untyped_storage()._cdata


def num_writes(tensor: Tensor) -> int:
    """How often a tensor, or a view of its memory, was written into; inference tensors do not count it."""
    return tensor._version


def sparse_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The indices and the values of a sparse COO tensor, coalesced or not."""
    return tensor._indices(), tensor._values()
