"""Confidence intervals of impacts, from single samples."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaincinv, stdtrit  # scipy.stats takes a second to import

from layerprune.impact.scores import ImpactScores, Units

#: Probability that the bounds contain the impact on other data; ``benchmarks/coverage.py`` measures it.
LEVEL = 0.95

_AGREE = 0.75  # quantile of the spread between batches above which batches are not independent samples
_FEWEST = 3.0  # samples needed to estimate a spread: t is at most 4.3


def impact_intervals(evidence: ImpactScores) -> np.ndarray | None:
    """Confidence interval of each impact, ``(2, removal)``; nan if measured on one batch; None if there is one only.

    An impact is a ratio of two sums over samples. Its error follows from the residuals of the samples, on a log scale
    because divergences are positive. If a few samples cause most of the spread, Student's t has as few degrees
    of freedom. If batches differ more than random samples would (frames of one video), batches are the units.

    Args:
        evidence: impact scores; by sample if known, else by batch.
    """
    if len(evidence.change) < 2:
        return None
    units = evidence.units
    if units is None:
        units = Units(evidence.change, evidence.size, np.arange(len(evidence.change)))
    found = np.full((2, evidence.change.shape[1]), math.nan)
    for column in range(found.shape[1]):
        change, size = units.change[:, column], units.size[:, column]
        seen = (size != 0) | (change != 0)
        found[:, column] = interval(change[seen], size[seen], units.batches[seen], evidence.power)
    return found


def interval(change: np.ndarray, size: np.ndarray, batches: np.ndarray, power: float = 1.0) -> tuple[float, float]:
    """Confidence interval of ratio ** power, where ratio is ``change.sum() / size.sum()``.

    Args:
        change: change of each sample, ``(sample,)``.
        size: size of each sample, ``(sample,)``.
        batches: number of each sample's batch, ``(sample,)``.
        power: power of the ratio.

    Returns:
        Lower and upper bound; nan with a single batch or a change that is not finite.
    """
    names, places = np.unique(batches, return_inverse=True)
    num, num_batches = len(change), len(names)
    if num_batches < 2 or not np.isfinite(change).all() or size.sum() <= 0:
        return math.nan, math.nan
    ratio = change.sum() / size.sum()
    residuals = (change - ratio * size) / size.sum()
    variance, freedom = residuals.var(ddof=1) * num, _spread_over(residuals) - 1
    sums = np.bincount(places, residuals)
    between = float((sums**2).sum()) * num_batches / (num_batches - 1)
    if between > variance * 2 * gammaincinv((num_batches - 1) / 2, _AGREE) / (num_batches - 1):
        variance, freedom = between, min(freedom, num_batches - 1)
    error = float(stdtrit(max(freedom, _FEWEST - 1), (1 + LEVEL) / 2)) * math.sqrt(variance)
    if ratio > 0:
        bounds = (ratio * math.exp(-error / ratio), ratio * math.exp(min(error / ratio, 700.0)))
    else:
        bounds = (ratio - error, ratio + error)
    return bounds if power == 1 else (max(bounds[0], 0.0) ** power, max(bounds[1], 0.0) ** power)


def _spread_over(residuals: np.ndarray) -> float:
    """Effective number of samples that cause the spread: all if they are alike, few if a few dominate."""
    squares = residuals**2
    total = float((squares**2).sum())
    return float(squares.sum()) ** 2 / total if total > 0 else float(len(residuals))
