"""Normalizations per token between a layer's output and the sum that reads it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerprune.modules import parameters
from layerprune.torch_internals import has_hooks, parameters_of, with_parameters

_NUM_PROBES = 16
_TOLERANCE = 1e-3  # of the output, relative to the largest gain; above the rounding of bfloat16 inside a normalization


@dataclass(frozen=True, eq=False)
class Norm:
    """``g ∘ u / rms(u) + b`` over the last dimension; LayerNorm subtracts the mean from ``u`` first.

    Attributes:
        module: the module that computes it, with parameters copied in float32 or wider.
        gain: ``g``, ``(channel,)``.
        shift: ``b``, ``(channel,)``.
        is_centred: whether the mean is subtracted (LayerNorm) or not (RMSNorm).
    """

    module: nn.Module
    gain: Tensor
    shift: Tensor
    is_centred: bool

    def of(self, u: Tensor) -> Tensor:
        """The module's output, in float32 or wider."""
        return type(self.module).forward(self.module, u.to(torch.promote_types(u.dtype, self.gain.dtype)))

    def mean(self, u: Tensor) -> Tensor:
        """Mean that is subtracted from each token, ``(…, 1)``."""
        return u.mean(-1, keepdim=True) if self.is_centred else torch.zeros_like(u[..., :1])

    def size(self, u: Tensor) -> Tensor:
        """Divisor of each token, ``(…, 1)``."""
        return (u - self.mean(u)).square().mean(-1, keepdim=True).sqrt()

    def before(self, made: Tensor, like: Tensor) -> Tensor:
        """Invert the normalization for ``made``, with each token's mean and size as in the present input ``like``.

        A channel with almost no gain keeps its input, because any input would do.
        """
        large = self.gain.abs() > 1e-3 * self.gain.abs().max()
        unit = (made - self.shift) / torch.where(large, self.gain, torch.ones_like(self.gain))
        return torch.where(large, unit * self.size(like) + self.mean(like), like)


@torch.no_grad()
def norm_of(module: nn.Module, width: int) -> Norm | None:
    """Test whether a module normalizes each token, and measure its gain and shift; None if it computes something else.

    Args:
        module: a layer of kind normalization.
        width: number of channels of a token.
    """
    held = next(parameters(module), None)
    if width < 2 or "forward" in vars(module) or has_hooks(module):
        return None
    wide = {
        key: None if p is None else nn.Parameter(p.detach().to(torch.promote_types(p.dtype, torch.float32)), False)
        for key, p in parameters_of(module).items()
    }
    alone = with_parameters(module, wide)
    dtype = torch.float32 if held is None else torch.promote_types(held.dtype, torch.float32)
    device = torch.device("cpu") if held is None else held.device
    draw = torch.Generator().manual_seed(0)
    probes = torch.randn(1, _NUM_PROBES, width, generator=draw, dtype=dtype).to(device)
    probes = probes * torch.linspace(0.5, 2.0, _NUM_PROBES, dtype=dtype, device=device)[:, None] + 0.5
    try:
        made = type(module).forward(alone, probes)
        shift = type(module).forward(alone, torch.zeros_like(probes[:, :1]))[0, 0]
    except Exception:  # the module takes another shape than tokens, or several tensors
        return None
    if made.shape != probes.shape:
        return None
    for is_centred in (False, True):
        probe = Norm(module, torch.ones_like(shift), shift, is_centred)
        unit = (probes - probe.mean(probes)) / probe.size(probes)
        gain = ((made - shift) * unit).sum((0, 1)) / unit.square().sum((0, 1))
        far = (made - shift - gain * unit).abs().max()
        if bool(far <= _TOLERANCE * gain.abs().max()):
            return Norm(alone, gain, shift, is_centred)
    return None
