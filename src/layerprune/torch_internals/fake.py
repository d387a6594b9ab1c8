"""Fake tensors: shapes without values, on which a forward runs without memory for data."""

# pyright: reportUnusedImport=false
from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch._subclasses.fake_tensor import UnsupportedFakeTensorException as UnknownValue

from layerprune.torch_internals.modes import no_modes

#: The errors of a forward that reads the value of a fake tensor.
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


def fake_like(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Make a fake tensor with the form of another tensor."""
    with no_modes():
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(mode, meta, tensor.device)


def to_fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Make a fake tensor without reading the real data (the tensor may be on the meta device or quantized)."""
    if isinstance(tensor, FakeTensor) or type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return mode.from_tensor(tensor, static_shapes=True)
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return mode.from_tensor(tensor, static_shapes=True)
    with no_modes():
        meta = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta")
        fake = FakeTensor(mode, meta, tensor.device if not tensor.is_meta else torch.device("cpu"))
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Silence torch's log of a forward that fails on fake tensors, which is an expected result here."""
    logger = logging.getLogger(FakeTensor.__module__)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
