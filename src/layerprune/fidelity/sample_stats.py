"""Distances, divergences and token accuracy of two models' outputs, per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layerprune.fidelity.divergence import class_dim, masked


@dataclass(frozen=True, eq=False)
class Sampled:
    """A measure per sample, ``(sample,)``: a sum, and its divisor."""

    total: np.ndarray
    weight: np.ndarray


def added(some: Sequence[Sampled]) -> Sampled:
    """Add up measures of the same samples from several tensors."""
    return Sampled(sum(one.total for one in some), sum(one.weight for one in some))  # pyright: ignore[reportArgumentType]


def distances(pairs: Sequence[tuple[Tensor, Tensor]], mask: Tensor | None, num_samples: int) -> tuple[Sampled, Sampled]:
    """Relative L2 distance and cosine of each sample's outputs, flattened into one vector.

    ``mask`` is ``(sample, token)``; a batch counts as one sample where an output has another first dimension.
    """
    split = all(a.dim() > 0 and a.shape[0] == num_samples for a, _ in pairs)
    originals, others = (
        torch.cat([_flat(masked(tensor, mask), split) for tensor in some], 1) for some in zip(*pairs, strict=True)
    )
    size = originals.norm(dim=1)
    change = (others - originals).norm(dim=1)
    relative = torch.where(size > 0, change / size, (change > 0).double())
    cosine = torch.where((size > 0) | (others.norm(dim=1) > 0), F.cosine_similarity(originals, others), 1.0)
    ones = np.ones(len(size))
    return Sampled(relative.numpy(), ones), Sampled(cosine.numpy(), ones)


def _flat(tensor: Tensor, split: bool) -> Tensor:
    return tensor.detach().double().cpu().reshape(tensor.shape[0] if split else 1, -1)


def divergences(original: Tensor, other: Tensor, mask: Tensor | None) -> tuple[Sampled, Sampled]:
    """KL divergence (nats) and top-1 agreement of logits, summed over each sample's predictions."""
    dim = class_dim(original)
    p, q = (_at_least_single(tensor.detach()).log_softmax(dim) for tensor in (original, other))
    each = (p.exp() * (p - q)).sum(dim).double()
    same = (p.argmax(dim) == q.argmax(dim)).double()
    counts = mask.double() if mask is not None and mask.shape == each.shape else torch.ones_like(each)
    return _per_sample(each, counts), _per_sample(same, counts)


def _per_sample(each: Tensor, counts: Tensor) -> Sampled:
    total = (each * counts).reshape(each.shape[0], -1).sum(1)
    return Sampled(total.cpu().numpy(), counts.reshape(each.shape[0], -1).sum(1).cpu().numpy())


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def surprise(logits: Tensor, tokens: Tensor, mask: Tensor | None) -> Sampled:
    """Negative log-likelihood, in nats, of each sample's tokens ``(sample, token)`` except the first."""
    each = F.cross_entropy(_at_least_single(logits[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none").double()
    counts = torch.ones_like(each) if mask is None else (mask[:, 1:] * mask[:, :-1]).double()
    return _per_sample(each, counts)


def repeated(tokens: Tensor, size: int = 4) -> Tensor:
    """The share of each sequence's n-grams that were there before, ``(sample,)``.

    >>> repeated(torch.tensor([[1, 2, 1, 2, 1, 2]]), size=2)
    tensor([0.6000])
    """
    grams = tokens.unfold(1, size, 1).tolist()
    return torch.tensor([1 - len({tuple(gram) for gram in row}) / len(row) for row in grams])
