"""Racing: which of several sets are measured on the next batch, by what those before have shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy.stats import t as student_t

#: Gets change and size so far, ``(batch, set)``, 0 where a set was not measured; tells which go on, ``(set,)``.
Rule: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: Batches after which the better one of the last two has won.
FINAL = 4

_ONE_SIGMA = 0.8413  # of Student's t: two batches that agree may do so by chance


def all_of_them(change: np.ndarray, _size: np.ndarray) -> np.ndarray:
    """Every set goes on."""
    return np.ones(change.shape[1], dtype=bool)


def until_precise(precision: float) -> Rule:
    """A set goes on until its impact's standard error is below a share of it, as two batches or more tell."""

    def going_on(change: np.ndarray, size: np.ndarray) -> np.ndarray:
        return ~(_errors(change, size) <= precision * np.abs(impacts_of(change, size)))

    return going_on


def contenders(precision: float, fewest: int = 8) -> Rule:
    """After the first batch the half of least impact goes on, or ``fewest`` sets, each until it is precise.

    Impacts are chosen by their sums, in which what is far below the others needs no precision of its own: errors are
    held against the mean of the half, where an impact is below that.
    """

    def going_on(change: np.ndarray, size: np.ndarray) -> np.ndarray:
        if not len(change):
            return all_of_them(change, size)
        half = _places(impacts_of(change[:1], size[:1])) < max(fewest, -(-change.shape[1] // 2))
        impacts = np.abs(np.nan_to_num(impacts_of(change, size)))
        scale = np.maximum(impacts, impacts[half].mean() if half.any() else 0.0)
        return half & ~(_errors(change, size) <= precision * scale)

    return going_on


def halving(change: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Successive halving (arXiv 1502.07943): each time the batches double, the better half of the sets goes on.

    The last two meet on :data:`FINAL` batches. Differences count, on the same batches, so that few tell.
    """
    num = change.shape[1]
    if not len(change):
        return all_of_them(change, size)
    staying = (size != 0).all(0) & np.isfinite(change).all(0)
    impacts = np.where(staying, impacts_of(change, size), np.inf)
    left = 1 if len(change) >= FINAL else max(2, -(-num // (1 << len(change).bit_length())))
    going_on = staying & (_places(impacts) < left)
    return going_on if going_on.sum() > 1 else np.zeros_like(going_on)


def winner(impacts: np.ndarray, num_batches: np.ndarray) -> int:
    """Of the sets that were measured on the most batches that with the least impact."""
    known = np.nan_to_num(impacts, nan=np.inf)
    return int(np.where(num_batches == num_batches.max(), known, np.inf).argmin())


def _errors(change: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The standard error of each impact, by the spread from batch to batch; nan where one batch was measured."""
    num = (size != 0).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(size != 0, change / size - impacts_of(change, size), 0.0)
        return np.sqrt((spread**2).sum(0) / (num - 1) / num) * student_t.ppf(_ONE_SIGMA, num - 1)


def impacts_of(change: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Ratios of the sums, ``(set,)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return change.sum(0) / size.sum(0)


def _places(impacts: np.ndarray) -> np.ndarray:
    """The place of each in order of impact, those that are not known last."""
    order = np.argsort(np.nan_to_num(impacts, nan=np.inf), kind="stable")
    places = np.empty(len(order), dtype=int)
    places[order] = np.arange(len(order))
    return places
