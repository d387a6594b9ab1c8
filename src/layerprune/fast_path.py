"""The fast path of torch's transformer modules, in which none of their values shows up."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def no_fast_path() -> Generator[None]:
    """Keep torch's transformer modules from running as one fused operation, in which no value shows up."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
