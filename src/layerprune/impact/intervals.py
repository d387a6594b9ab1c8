"""Confidence intervals of impacts, from single samples."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student_t

from layerprune.impact.scores import ImpactScores, Units

#: How often the bounds are meant to hold the impact on other data; ``benchmarks/coverage.py`` counts how often they do.
LEVEL = 0.95

_AGREE = 0.75  # batches that differ more than so many draws of independent samples would are taken as the units
_FEWEST = 3.0  # samples, to speak of a spread: t is at most 4.3


def impact_intervals(evidence: ImpactScores) -> np.ndarray | None:
    """The interval of each impact, ``(2, removal)``; nan where it was measured on one batch; None where on one only.

    An impact is a ratio of two sums over samples. Its error follows from the samples' residuals, on the logarithm's
    scale, as harms are positive. Where a few samples make up most of the spread, Student's t gets as few degrees of
    freedom. Where batches differ more than samples drawn at random would (frames of one recording), batches are the
    units, of which there are fewer.

    Args:
        evidence: what was measured; by samples where that is known, else by batches.
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
    """The interval of one ratio of sums, to a power; nan where there is one batch, or what is not finite.

    Args:
        change: of each sample, ``(sample,)``.
        size: what that is relative to, ``(sample,)``.
        batches: of which batch each sample is, ``(sample,)``.
        power: of the ratio.
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
    if between > variance * chi2.ppf(_AGREE, num_batches - 1) / (num_batches - 1):
        variance, freedom = between, min(freedom, num_batches - 1)
    error = float(student_t.ppf((1 + LEVEL) / 2, max(freedom, _FEWEST - 1))) * math.sqrt(variance)
    if ratio > 0:
        bounds = (ratio * math.exp(-error / ratio), ratio * math.exp(min(error / ratio, 700.0)))
    else:
        bounds = (ratio - error, ratio + error)
    return bounds if power == 1 else (max(bounds[0], 0.0) ** power, max(bounds[1], 0.0) ** power)


def _spread_over(residuals: np.ndarray) -> float:
    """Of how many samples a spread is: all where they are alike, few where a few make it up."""
    squares = residuals**2
    total = float((squares**2).sum())
    return float(squares.sum()) ** 2 / total if total > 0 else float(len(residuals))
