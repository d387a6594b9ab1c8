"""Losses between the outputs and hidden states of the pruned model and of the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from layerprune.distillation.hidden_matching import Match
from layerprune.distillation.recipe import Recipe
from layerprune.fidelity import Kind, class_dim


@dataclass(frozen=True, eq=False)
class TopLogits:
    """The most likely classes ``(…, k)``, and log-probabilities ``(…, k + 1)`` of these and of all others together."""

    classes: Tensor
    log_probs: Tensor


def top_logits(logits: Tensor, count: int, temperature: float) -> TopLogits:
    """Keep the ``count`` most likely classes of logits ``(…, class)``; the other classes are summed up."""
    log_probs = _log_probs(logits, temperature, -1)
    classes = log_probs.topk(count, -1).indices
    return TopLogits(classes, _among(log_probs, classes))


def _among(log_probs: Tensor, classes: Tensor) -> Tensor:
    others = log_probs.scatter(-1, classes, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, classes), others], -1)


def _log_probs(logits: Tensor, temperature: float, dim: int) -> Tensor:
    return (_precise(logits) / temperature).log_softmax(dim)


def _precise(tensor: Tensor) -> Tensor:
    """Convert to float32 at least: in sixteen bits a sum of many squares is inexact."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def loss_of_output(
    kind: Kind, outputs: Sequence[Tensor], wanted: Sequence[Tensor | TopLogits], mask: Tensor | None, recipe: Recipe
) -> Tensor:
    """Loss of the pruned model's outputs against the original's.

    Args:
        kind: ``distribution``: KL divergence at a temperature, times the temperature's square, so that gradients keep
            their size (arXiv 1503.02531, section 2.1), averaged over predictions. ``values``: :func:`loss_of_values`,
            averaged over tensors.
        outputs: of the pruned model.
        wanted: of the original.
        mask: ``(sample, token)``, 1 where a token counts.
        recipe: gives the temperature.
    """
    if kind == "distribution":
        return divergence(outputs[0], wanted[0], mask, recipe.temperature) * recipe.temperature**2
    pairs = [(x, y) for x, y in zip(outputs, wanted, strict=True) if isinstance(y, Tensor)]
    return torch.stack([loss_of_values(x, y, mask) for x, y in pairs]).mean()


def divergence(logits: Tensor, wanted: Tensor | TopLogits, mask: Tensor | None, temperature: float = 1.0) -> Tensor:
    """KL divergence of logits from the original's, averaged over the predictions that count.

    Args:
        logits: ``(sample, …, class)``, or ``(sample, class, row, column)`` for maps.
        wanted: the original's logits, or its most likely classes; then the result is a lower bound of the divergence.
        mask: ``(sample, token)``, 1 where a token counts.
        temperature: divisor of the logits.
    """
    dim = class_dim(logits)
    found = _log_probs(logits, temperature, dim)
    if isinstance(wanted, TopLogits):
        found, target = _among(found, wanted.classes), wanted.log_probs
    else:
        target = _log_probs(wanted, temperature, dim)
    each = (target.exp() * (target - found)).sum(dim)
    if mask is not None and mask.shape == each.shape:
        return (each * mask).sum() / mask.sum()
    return each.mean()


def loss_of_values(found: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
    """Squared distance relative to the original's square, plus the mean of 1 - cosine along the last dimension."""
    found, wanted = _precise(found), _precise(wanted)
    if found.dim() < 2 or found.shape[-1] == 1:
        return distance(found, wanted, mask)  # a single number has no angle
    angles = 1 - F.cosine_similarity(found, wanted, dim=-1)
    if _fits(mask, angles):
        assert mask is not None
        counts = mask.reshape(*mask.shape, *[1] * (angles.dim() - 2)).to(angles.dtype).expand_as(angles)
        return distance(found, wanted, mask) + (angles * counts).sum() / counts.sum()
    return distance(found, wanted, mask) + angles.mean()


def distance(found: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
    """Squared distance of two tensors relative to the second's square; padding tokens are left out."""
    found, wanted = _precise(found), _precise(wanted)
    change, size = (found - wanted).square(), wanted.square()
    if _fits(mask, change):
        assert mask is not None
        counts = mask.reshape(*mask.shape, *[1] * (change.dim() - 2)).to(change.dtype)
        change, size = change * counts, size * counts
    total = size.sum()
    return change.sum() / torch.where(total > 0, total, float(size.numel()))  # relative to zeros: the distance itself


def _fits(mask: Tensor | None, tensor: Tensor) -> bool:
    return mask is not None and tensor.shape[:2] == mask.shape


def loss_of_hidden(
    matches: Sequence[Match], found: Mapping[int, Tensor], wanted: Mapping[int, Tensor], mask: Tensor | None
) -> Tensor | None:
    """Weighted mean of the matches' distances; None where no match was seen in both models."""
    seen = [match for match in matches if match.student in found and match.teacher in wanted]
    if not seen:
        return None
    parts = [match.weight * distance(found[match.student], wanted[match.teacher], mask) for match in seen]
    return torch.stack(parts).sum() / sum(match.weight for match in seen)
