"""Decides which sets are measured on the next batch, from the batches measured so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy.stats import t as student_t

#: Gets change and size so far, ``(round, set)``, 0 where a set was not measured, and how many batches the rounds make
#: up; tells which go on, ``(set,)``.
Rule: TypeAlias = Callable[[np.ndarray, np.ndarray, float], np.ndarray]

#: Batches after which the better one of the last two has won.
FINAL = 4

#: Rounds after which a removal's impact has to do, precise or not.
MOST = 12

_ONE_SIGMA = 0.8413  # of Student's t: two batches that agree may do so by chance


def all_of_them(change: np.ndarray, _size: np.ndarray, _num_batches: float) -> np.ndarray:
    """Every set goes on."""
    return np.ones(change.shape[1], dtype=bool)


def first_only(change: np.ndarray, _size: np.ndarray, _num_batches: float) -> np.ndarray:
    """Every set is measured once."""
    return np.full(change.shape[1], not len(change))


def contenders(precision: float, fewest: int = 8) -> Rule:
    """After the first round the half of least impact goes on, or ``fewest`` sets, each until it is precise.

    A set is precise when its impact's standard error is below a share of it, as two rounds or more tell. Impacts are
    chosen by their sums, in which what is far below the others needs no precision of its own: errors are held against
    the mean of the half, where an impact is below that.
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
    """Successive halving (arXiv 1502.07943): each time the rounds double, the better half goes on.

    Differences count, on the same batches, so that few tell.

    Args:
        first: after how many rounds that begins.
        final: on how many batches the last two meet.
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
    """How many of several sets go on by :func:`halving`, after so many rounds and batches."""
    if num_batches > final - 1e-6:
        return 1
    return num if rounds < first else max(2, -(-num // (1 << (2 * rounds // first).bit_length() - 1)))


def handicapped(rule: Rule, factors: np.ndarray) -> Rule:
    """A rule that sees what sets change as it counts, by their handicaps, ``(set,)``."""
    return lambda change, size, num_batches: rule(counted(change, factors), size, num_batches)


def counted(harms: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """What harms count by handicaps: as many times as much; of harm below zero, which is a gain, that part."""
    return np.where(harms > 0, harms * factors, harms / factors)


def winner(impacts: np.ndarray, num_batches: np.ndarray) -> int:
    """Of the sets that were measured on the most data, that with the least impact."""
    known = np.nan_to_num(impacts, nan=np.inf)
    return int(np.where(num_batches > num_batches.max() - 1e-6, known, np.inf).argmin())


def _errors(change: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The standard error of each impact, by the spread from round to round; nan where there was one."""
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
