"""The fast path of torch's transformer modules, in which none of their values shows up."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from layerprune.modules.undo import Journal


@contextmanager
def no_fast_path() -> Generator[None]:
    """Keep torch's transformer modules from running as one fused operation, in which no value shows up."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def nothing() -> Tensor:
    """What stands for a weight that is gone from a layer of :class:`torch.nn.TransformerEncoder`.

    The encoder reads the weights of its first layer to decide whether it packs padded tokens into a nested tensor, of
    which the padded ones come out as zeros. Any plain tensor lets it do so as before; it computes nothing with them.
    """
    with _disable_current_modes():
        return torch.empty(0)


def unfuse(layer: nn.TransformerEncoderLayer, journal: Journal) -> None:
    """Keep a layer that has lost a part from running as one fused operation, which would use all its weights."""
    journal.set(vars(layer), "activation_relu_or_gelu", 0)
