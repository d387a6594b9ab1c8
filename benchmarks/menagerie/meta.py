"""Models without memory: built on the meta device, whatever their constructors compute on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch import nn


def on_meta(build: Callable[[], nn.Module], *, values: bool = False) -> nn.Module:
    """Build a model on the meta device; with ``values``, its parameters only, so that buffers keep theirs.

    A constructor that reads the values of tensors it has just made (widths by ``torch.arange``) fails there; then only
    what gets registered as a parameter is put on the meta device, and buffers follow in the end.
    """
    if values:
        with _meta_parameters():
            return build().eval()
    try:
        with torch.device("meta"):
            return build().eval()
    except (NotImplementedError, RuntimeError, TypeError, ValueError):  # what reading a meta tensor raises, and where
        with _meta_parameters():
            return build().to("meta").eval()


@contextlib.contextmanager
def _meta_parameters() -> Iterator[None]:
    """Put every parameter on the meta device at the moment a module takes it."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    with patch.object(nn.Module, "register_parameter", registered):
        yield
