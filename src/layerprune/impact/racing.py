"""Chooses the sets to measure on the next batch, from the batches measured so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes a second to import

#: Takes change and size so far, ``(round, set)``, both 0 if a set was not measured, and the number of batches in these
#: rounds; returns the sets to measure next, ``(set,)``.
Rule: TypeAlias = Callable[[np.ndarray, np.ndarray, float], np.ndarray]

#: Batches after which the better of the last two sets wins.
FINAL = 4

#: Most rounds for one removal, even if its impact is not precise.
MOST = 12

_ONE_SIGMA = 0.8413  # quantile of Student's t: with few batches a small spread may be chance


def all_of_them(change: np.ndarray, _size: np.ndarray, _num_batches: float) -> np.ndarray:
    """Measure every set in every round."""
    return np.ones(change.shape[1], dtype=bool)


def first_only(change: np.ndarray, _size: np.ndarray, _num_batches: float) -> np.ndarray:
    """Measure every set in the first round only."""
    return np.full(change.shape[1], not len(change))


def contenders(precision: float, fewest: int = 8) -> Rule:
    """After the first round, continue with the half of least impact, at least ``fewest`` sets, until each is precise.

    An impact is precise if its standard error, from two rounds or more, is below ``precision`` times the impact.
    Impacts are chosen by their sums, so small ones need less: the mean of the half is the least scale of an error.
    """

    def going_on(change: np.ndarray, size: np.ndarray, num_batches: float) -> np.ndarray:
        if not len(change):
            return all_of_them(change, size, num_batches)
        half = _places(impacts_of(change[:1], size[:1])) < max(fewest, -(-change.shape[1] // 2))
        impacts = np.abs(np.nan_to_num(impacts_of(change, size)))
        scale = np.maximum(impacts, impacts[half].mean() if half.any() else 0.0)
        return half & (len(change) < MOST) & ~(_errors(change, size) <= precision * scale)

    return going_on


def halving(first: int = 2, final: float = FINAL) -> Rule:
    """Successive halving (arXiv 1502.07943): each time the number of rounds doubles, the better half continues.

    Sets are compared on the same batches, so that few batches are enough.

    Args:
        first: rounds before the first halving.
        final: batches that the last two sets are measured on.
    """

    def going_on(change: np.ndarray, size: np.ndarray, num_batches: float) -> np.ndarray:
        staying = (size != 0).all(0) & np.isfinite(change).all(0)
        impacts = np.where(staying, impacts_of(change, size), np.inf)
        left = going_on_of(change.shape[1], len(change), num_batches, first, final)
        if left == change.shape[1] and not len(change):
            return all_of_them(change, size, num_batches)
        best = staying & (_places(impacts) < left)
        return best if best.sum() > 1 else np.zeros_like(best)

    return going_on


def going_on_of(num: int, rounds: int, num_batches: float, first: int, final: float) -> int:
    """Number of sets, of ``num``, that :func:`halving` continues with after these rounds and batches."""
    if num_batches > final - 1e-6:
        return 1
    return num if rounds < first else max(2, -(-num // (1 << (2 * rounds // first).bit_length() - 1)))


def handicapped(rule: Rule, factors: np.ndarray) -> Rule:
    """A rule that sees changes weighted by :func:`counted`; factors are ``(set,)``."""
    return lambda change, size, num_batches: rule(counted(change, factors), size, num_batches)


def counted(harms: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Divergences times their factors; a negative divergence, which is a gain, is divided instead."""
    return np.where(harms > 0, harms * factors, harms / factors)


def winner(impacts: np.ndarray, num_batches: np.ndarray) -> int:
    """The set with the least impact among those measured on the most data."""
    known = np.nan_to_num(impacts, nan=np.inf)
    return int(np.where(num_batches > num_batches.max() - 1e-6, known, np.inf).argmin())


def _errors(change: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Standard error of each impact, ``(set,)``, from the spread over rounds; nan with one round."""
    num = (size != 0).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(size != 0, change / size - impacts_of(change, size), 0.0)
        return np.sqrt((spread**2).sum(0) / (num - 1) / num) * stdtrit(num - 1, _ONE_SIGMA)


def impacts_of(change: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Ratios of the sums over rounds, ``(set,)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return change.sum(0) / size.sum(0)


def _places(impacts: np.ndarray) -> np.ndarray:
    """Rank of each impact, ``(set,)``; unknown impacts come last."""
    order = np.argsort(np.nan_to_num(impacts, nan=np.inf), kind="stable")
    places = np.empty(len(order), dtype=int)
    places[order] = np.arange(len(order))
    return places
