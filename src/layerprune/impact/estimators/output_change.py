"""Estimates the change of the model's output for all removals from one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerprune.capture import Batch
from layerprune.fidelity import Divergence, class_dim, divergence_of, masked
from layerprune.impact.estimators.gradient_taps import UNSEEN, GradientTaps
from layerprune.impact.scores import ImpactScores, ScoringContext, about_harm, about_unknown


def score_output_change(
    scene: ScoringContext, harm: Divergence | None = None, *, num_directions: int = 1
) -> ImpactScores:
    """Estimate how far each removal moves the output, for all removals at once.

    A removal that replaces ``y`` by ``s`` moves the output ``f`` along a direction ``v``, to first order, by the sum of
    ``e = ∂(v·f)/∂y · (s - y)`` over the elements of ``y``. The impact is the sum of ``e²`` over random ``v``: the
    diagonal of the Gauss-Newton matrix, as in Optimal Brain Damage (LeCun 1990). The whole matrix gives the square of
    the sum. It is exact for small steps, but ranks removals worse, because their steps are large.
    Figures: ``docs/benchmarks/impact.md``.

    If the output is a distribution, classes are drawn from the model's own prediction and ``v`` is the gradient of
    their logarithm. Half the expectation is the Fisher estimate of the KL divergence (arXiv 1801.05787, there for
    channels). No labels are needed. ``pairs`` holds the interactions: the correlation of two removals' changes, scaled
    by their impacts.

    Args:
        scene: removals and calibration data.
        harm: divergence between outputs; chosen from the model and its output if None.
        num_directions: backwards per batch.
    """
    harm = harm or scene.harm
    taps = GradientTaps(scene)
    rows: list[np.ndarray] = []
    sizes = np.ones(len(scene.batches))
    products = np.zeros((len(scene.removals), len(scene.removals)))
    generator = torch.Generator().manual_seed(scene.seed)
    for row, batch in enumerate(scene.batches):

        def pull(out: Any, ends: Sequence[Any], row: int = row, batch: Batch = batch) -> None:
            nonlocal harm
            harm = harm or divergence_of(scene.model, out)
            sizes[row] = _pull(out, ends, harm, batch, generator, num_directions)

        with scene.on(row):
            moved = taps.run(batch, pull, num_backwards=num_directions)
        rows.append(moved.squares.sum(1))
        products += moved.sums @ moved.sums.T
        scene.progress(row + 1, len(scene.batches))
    assert harm is not None
    half = 0.5 if harm.kind == "distribution" else 1.0
    change = half * np.stack(rows) / num_directions
    size = np.broadcast_to(sizes[:, None], change.shape)
    pairs = _pairs(products, change.sum(0) / sizes.sum())
    notes = (*about_unknown(scene.removals, change, UNSEEN), *about_harm(scene, harm))
    unit = f"{harm.unit}, estimated"
    return ImpactScores(change=change, size=size, power=1.0, unit=unit, notes=notes, pairs=pairs)


def _pairs(products: np.ndarray, impacts: np.ndarray) -> np.ndarray:
    """Interactions, ``(removal, removal)``: the geometric mean of two impacts times their correlation."""
    lengths = np.sqrt(products.diagonal())
    with np.errstate(divide="ignore", invalid="ignore"):
        found = products * np.outer(*[np.sqrt(impacts) / lengths] * 2)
    found[:, lengths == 0] = found[lengths == 0] = 0.0
    np.fill_diagonal(found, 0.0)
    return found


def _pull(
    out: Any, ends: Sequence[Any], harm: Divergence, batch: Batch, generator: torch.Generator, num_directions: int
) -> float:
    """Send random output directions backwards; returns the number that the squares are relative to."""
    outputs = [t for t in harm.outputs(out) if t.requires_grad]
    if not outputs or not ends:
        return 1.0
    size = 1.0
    for number in range(num_directions):
        directions: list[Tensor] = []
        for tensor in outputs:
            direction, size = _direction(tensor.detach(), harm, batch, generator, len(outputs))
            directions.append(direction)
        more = number + 1 < num_directions
        torch.autograd.grad(outputs, ends, directions, retain_graph=more, allow_unused=True)
    return size


def _direction(
    tensor: Tensor, harm: Divergence, batch: Batch, generator: torch.Generator, num_outputs: int
) -> tuple[Tensor, float]:
    """A direction for one output, and the number of predictions or samples that its squares are relative to."""
    if harm.kind == "values":
        direction = masked(torch.randn(tensor.shape, generator=generator).to(tensor), batch.mask)
        scale = (batch.num_samples / num_outputs) ** 0.5 / masked(tensor, batch.mask).norm().clamp_min(1e-30)
        return direction * scale, float(batch.num_samples)
    dim = class_dim(tensor)
    p = tensor.float().softmax(dim)
    rows = p.movedim(dim, -1)
    drawn = torch.multinomial(rows.reshape(-1, p.shape[dim]).cpu(), 1, generator=generator)
    chosen = drawn.reshape(rows.shape[:-1]).unsqueeze(-1).movedim(-1, dim).to(p.device)
    direction = torch.zeros_like(p).scatter_(dim, chosen, 1.0) - p
    fits = batch.mask is not None and tensor.shape[:2] == batch.mask.shape
    num = float(batch.mask.sum()) if fits and batch.mask is not None else float(rows[..., 0].numel())
    return masked(direction, batch.mask).to(tensor.dtype), num
