"""Random weights with which every layer does something: no zeros, no identities, activations of a sane size."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from menagerie.entry import Batch

_JITTER = 0.1
_INVISIBLE = 0.05  # a constant below this (LayerScale begins at 1e-6) hides what it scales


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Keep the architecture's own initialisation, but jitter it, and replace constants that would hide a removal."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
                parameter.copy_(_redrawn(name.rpartition(".")[2], parameter.double(), noise))
    return model


def _redrawn(name: str, old: Tensor, noise: Tensor) -> Tensor:
    fan_in = old[0].numel() if old.dim() > 1 else 1
    if not old.isfinite().all():  # never initialised
        return noise / max(fan_in, 1) ** 0.5
    if old.numel() and old.amax() == old.amin() and float(old.flatten()[0].abs()) < _INVISIBLE:
        if "bias" in name:
            return _JITTER * noise
        is_scale = old.dim() == 0 or old.numel() == max(old.shape)
        return 0.5 + _JITTER * noise if is_scale else noise / fan_in**0.5
    return old * (1 + _JITTER * noise)


def calibrate(model: nn.Module, batch: Batch) -> nn.Module:
    """Set the statistics of batch norms to what they meet on a batch, so that activations keep their size."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.train().momentum = 1.0
        with torch.no_grad():
            model(*batch[0], **batch[1])
            for norm in norms:
                assert norm.running_var is not None
                norm.running_var.add_(norm.running_var.mean() + 1e-3).mul_(0.5)  # no channel's variance is tiny
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
    return model


@contextmanager
def perturbed(model: nn.Module, relative: float) -> Iterator[None]:
    """Change every parameter by a relative amount, and back again."""
    with torch.no_grad():
        kept = [(p, p.detach().clone()) for p in model.parameters() if p.is_floating_point()]
        try:
            for parameter, value in kept:
                parameter.copy_(value * (1 + relative * torch.randn_like(value)))
            yield
        finally:
            for parameter, value in kept:
                parameter.copy_(value)


def state_of(model: nn.Module, *, values: bool = True) -> dict[str, Any]:
    """All that a user could find changed: tensors and who they are, modes, submodules, hooks, attributes.

    Args:
        model: any model.
        values: whether the values of plain attributes count, which a forward of the model's own may change.
    """
    state: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        attributes = vars(module)
        state[f"'{name}'"] = (id(module), type(module), module.training, [*attributes], [*module._modules])
        state[f"hooks of '{name}'"] = [len(value) for key, value in attributes.items() if key.endswith("_hooks")]
        if values:
            plain = (bool, int, float, str, tuple, type(None))
            state[f"attributes of '{name}'"] = repr([a for a in attributes.items() if type(a[1]) in plain])
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            state[f"'{name}.{key}'"] = None if tensor is None else (id(tensor), tensor.requires_grad, _digest(tensor))
    return state


def _digest(tensor: Tensor) -> int:
    """A checksum of a tensor's bits: a clone of every tensor would take too much memory."""
    flat = tensor.detach().cpu().contiguous().flatten()
    flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat
    return zlib.crc32(flat.view(torch.uint8).numpy()) if flat.numel() else 0
