"""The memory behind tensors, and its write counter."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

#: Whether a tensor's class wraps other tensors, as quantized and distributed weights do.
is_wrapper_subclass = is_traceable_wrapper_subclass


def storage_id(tensor: Tensor) -> int:
    """The id of a tensor's memory while it lives; also for fake and meta tensors, whose data_ptr is 0."""
    return tensor.untyped_storage()._cdata


def num_writes(tensor: Tensor) -> int:
    """The number of writes into a tensor or its views; inference tensors do not count them."""
    return tensor._version


def sparse_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The indices and the values of a sparse COO tensor, coalesced or not."""
    return tensor._indices(), tensor._values()
