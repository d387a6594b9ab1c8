"""Measures how far one output of a model is from another output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.errors import CalibrationError, UnknownNameError
from layerprune.tensors import tensors_by_place

Kind = Literal["distribution", "values"]


@dataclass(frozen=True)
class Divergence:
    """The comparison of two outputs.

    ``distribution`` is the KL divergence from the original's distribution, in nats per prediction. ``values`` is the
    squared L2 distance relative to the original's square; squares of several removals nearly add up, because changes in
    many dimensions are nearly orthogonal.
    """

    kind: Kind

    @property
    def unit(self) -> str:
        return (
            "KL divergence of the output, nats per prediction"
            if self.kind == "distribution"
            else "squared relative L2 change of the output"
        )

    def outputs(self, out: Any) -> list[Tensor]:
        """The output tensors that are compared: logits for ``distribution``, else all of floating point."""
        found = _logits(out) if self.kind == "distribution" else None
        return [found] if found is not None else [t for t in tensors_by_place(out) if t.is_floating_point()]

    def num_predictions(self, out: Any) -> int | None:
        """Number of logits tensors in an output; None for all tensors of a list."""
        return None if type(out) is list else 1

    def between(self, original: Any, other: Any, mask: Tensor | None = None) -> tuple[float, float]:
        """Sum of the change, and its divisor; ``mask`` is ``(sample, token)``, 1 where a token counts."""
        pairs = self._pairs(original, other)
        if self.kind == "distribution":
            changes, sizes = zip(*(_divergence(*pair, mask) for pair in pairs), strict=True)
            return sum(changes), sum(sizes)
        changes = [_relative(a, b, mask) for a, b in pairs]
        samples = max((a.shape[0] if a.dim() else 1) for a, _ in pairs)
        return samples * sum(changes) / len(changes), float(samples)

    def by_sample(self, original: Any, other: Any, mask: Tensor | None, num_samples: int) -> np.ndarray:
        """:meth:`between` per sample, ``(2, sample)``; ``(2, 1)`` where outputs do not separate samples."""
        pairs = self._pairs(original, other)
        if num_samples < 2 or any(a.dim() == 0 or len(a) != num_samples for a, _ in pairs):
            return np.array(self.between(original, other, mask))[:, None]
        if self.kind == "distribution":
            return np.sum([_divergences(*pair, mask) for pair in pairs], axis=0)
        return np.mean([_relatives(*pair, mask) for pair in pairs], axis=0)

    def _pairs(self, original: Any, other: Any) -> list[tuple[Tensor, Tensor]]:
        found = self.outputs(original), self.outputs(other)
        if len(found[0]) != len(found[1]):
            raise CalibrationError(
                f"without some layers the model returns {len(found[1])} tensors instead of {len(found[0])}: its "
                "outputs cannot be compared; let it return what is to be compared and no more"
            )
        pairs = list(zip(*found, strict=True))
        if self.kind == "distribution":
            pairs = pairs[: self.num_predictions(original)]
            wrong = next((a for a, _ in pairs if a.dim() < 2), None)
            if not pairs or wrong is not None:
                what = (
                    "holds no such tensor" if wrong is None else f"is {'×'.join(map(str, wrong.shape)) or 'a number'}"
                )
                raise CalibrationError(f"kind='distribution' wants logits, (sample, …, class), and the output {what}")
        return pairs


def divergence_named(kind: str | None) -> Divergence | None:
    """Make the divergence that the user names; raises :class:`UnknownNameError` for another kind."""
    if kind is None:
        return None
    if kind not in get_args(Kind):
        raise UnknownNameError(
            f"kind is {kind!r:.60}; give 'distribution' where the output are logits, 'values' where numbers count as "
            "they are, or None to have it told from the model"
        )
    return Divergence(cast(Kind, kind))


def divergence_of(model: nn.Module, out: Any) -> Divergence:
    """Choose the divergence for an output: a distribution is named ``logits``, or has the model's number of classes.

    No other sign separates classifiers from embedding and regression models, which also end in a linear layer; a KL
    divergence of other numbers would be meaningless. Classifiers of timm and torchvision state ``num_classes``.
    """
    logits = _logits(out)
    if logits is None:
        return Divergence("values")
    named = not isinstance(out, Tensor)
    classes = getattr(model, "num_classes", None)
    return Divergence("distribution" if named or logits.shape[-1] == classes else "values")


def _logits(out: Any) -> Tensor | None:
    if isinstance(out, Tensor):
        return out if out.is_floating_point() and out.dim() > 1 else None
    held = cast("Mapping[str, Any]", out).get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    return held if isinstance(held, Tensor) and held.is_floating_point() and held.shape[-1] > 1 else None


def class_dim(logits: Tensor) -> int:
    """The dimension of classes: the second for maps of pixels or voxels, else the last."""
    return 1 if logits.dim() in (4, 5) else -1


def _divergence(original: Tensor, other: Tensor, mask: Tensor | None) -> tuple[float, float]:
    each = _each_divergence(original, other)
    if mask is not None and mask.shape == each.shape:
        return float((each * mask).sum(dtype=torch.float64)), float(mask.sum())
    return float(each.sum(dtype=torch.float64)), float(each.numel())


def _divergences(original: Tensor, other: Tensor, mask: Tensor | None) -> np.ndarray:
    """Sums over each sample's predictions, and the numbers of predictions, ``(2, sample)``."""
    each = _each_divergence(original, other)
    counts = mask.to(each.dtype) if mask is not None and mask.shape == each.shape else torch.ones_like(each)
    sums = [part.reshape(len(each), -1).sum(1, dtype=torch.float64) for part in (each * counts, counts)]
    return torch.stack(sums).cpu().numpy()


def _each_divergence(original: Tensor, other: Tensor) -> Tensor:
    dim = class_dim(original)
    p, q = (tensor.to(_precise(tensor)).log_softmax(dim) for tensor in (original, other))
    return torch.where(p == -math.inf, torch.zeros_like(p), p.exp() * (p - q)).sum(dim)  # 0 log 0 is 0


def _relatives(original: Tensor, other: Tensor, mask: Tensor | None) -> np.ndarray:
    """Each sample's share of the relative change, times the number of samples, ``(2, sample)``."""
    change, size = (_squares(masked(tensor, mask)) for tensor in (other - original, original))
    total = float(size.sum())
    if math.isnan(total + float(change.sum())):
        return np.full((2, len(change)), math.nan)
    if total == 0:
        return np.stack([np.full(len(change), float(change.sum() > 0)), np.ones(len(change))])
    return len(change) / total * np.stack([change, size])


def _squares(tensor: Tensor) -> np.ndarray:
    parts = [
        torch.linalg.vector_norm(part, dim=1, dtype=_precise(part)) for part in tensor.flatten(1).split(_LONGEST, 1)
    ]
    return torch.stack(parts).double().square().sum(0).cpu().numpy()


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _relative(original: Tensor, other: Tensor, mask: Tensor | None) -> float:
    change, size = square(other - original, mask), square(original, mask)
    if math.isnan(change + size):
        return math.nan
    return change / size if size > 0 else float(change > 0)


def square(tensor: Tensor, mask: Tensor | None = None) -> float:
    """The squared norm of a tensor, of unmasked tokens only where the mask fits."""
    return float(norm(tensor, mask)) ** 2


def norm(tensor: Tensor, mask: Tensor | None = None) -> Tensor:
    """The norm of a tensor, of unmasked tokens only where the mask fits, as a scalar on its device.

    Parts are summed in float32, far faster than float64; the relative error stays below 5e-4 for parts of this size.
    """
    fits = mask is not None and tensor.shape[:2] == mask.shape
    if not fits and tensor.numel() <= _LONGEST and tensor.is_floating_point():
        return torch.linalg.vector_norm(tensor, dtype=_precise(tensor))
    start = 2 if fits else 0
    while math.prod(tensor.shape[start:]) > _LONGEST and start < tensor.dim() - 1:
        start += 1
    dims = tuple(range(start, tensor.dim()))
    dtype = None if tensor.is_complex() else _precise(tensor)
    parts = torch.linalg.vector_norm(tensor, dim=dims, dtype=dtype) if dims else tensor.abs()
    if fits and mask is not None:
        parts = parts * mask.reshape(*mask.shape, *[1] * (parts.dim() - 2))
    exact = torch.float32 if tensor.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(parts, dtype=exact) if parts.dim() else parts


def masked(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Set masked tokens to zero, where the mask fits the tensor."""
    if mask is None or tensor.shape[:2] != mask.shape:
        return tensor
    return tensor * mask.reshape(*mask.shape, *[1] * (tensor.dim() - 2)).to(tensor.dtype)


_LONGEST = 1 << 18  # elements
