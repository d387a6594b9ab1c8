"""Compares tensors bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one form hold the same bits: a NaN equals itself, and 0 differs from -0."""
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    if one.is_floating_point():
        bits = _BITS[one.element_size()]
        one, other = one.view(bits), other.view(bits)
    return torch.equal(one, other)


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same form and bits; False for layouts whose bits cannot be compared."""
    if not (_has_bits(one) and _has_bits(other)):
        return False
    same_form = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    parts = [_parts(tensor) for tensor in (one, other)]
    if parts[0] or parts[1]:  # such as quantized weights, which consist of numbers and scales
        same_form = same_form and type(one) is type(other) and len(parts[0]) == len(parts[1])
        return same_form and all(map(same_tensor, *parts))
    return same_form and same_bits(one.detach(), other.detach())


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor's class wraps other tensors, as quantized and distributed weights do."""
    return hasattr(tensor.data, "__tensor_flatten__")


def _parts(tensor: Tensor) -> list[Tensor]:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [] if flatten is None else [getattr(tensor, name) for name in flatten()[0]]


def _has_bits(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)
