"""Fake tensors: shapes without values, on which a forward runs in no memory."""

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

#: What a forward raises that asks a fake tensor for a value.
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


def fake_like(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Make a fake tensor of another one's form."""
    with no_modes():
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(mode, meta, tensor.device)


def to_fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Make a fake tensor without reading the real one's data (it may be on the meta device or quantised)."""
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
    """Keep torch from logging the traceback of a forward that fails on fakes: that is an answer here, not a fault."""
    logger = logging.getLogger(FakeTensor.__module__)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
