"""Corrects impacts of single removals by measured impacts of sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEAST = 0.1  # relative error of the sums below which they need no correction
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class CalibratedImpacts:
    """Impacts of removals, corrected by measured sets.

    Attributes:
        costs: one number per removal, ``(removal,)``, whose sums approximate the measurements.
        trust: from 0 to 1, the share of a measurement's deviation from the sum that is not noise.
        is_needed: whether measurements deviate from the sums by more than the noise.
    """

    costs: np.ndarray
    trust: float
    is_needed: bool

    def of(self, sets: Sequence[Sequence[int]], harms: np.ndarray) -> np.ndarray:
        sums = np.array([self.costs[list(some)].sum() for some in sets])
        return self.trust * harms + (1 - self.trust) * sums


def calibrate_impacts(
    impacts: np.ndarray, sets: Sequence[Sequence[int]], harms: np.ndarray, noise: float
) -> CalibratedImpacts:
    """Correct impacts by least squares, the more the worse their sums predict measurements.

    The model of a measurement is the sum of the removals' costs, a part of the set's own, and noise. The sets show
    how much the sums miss beyond the noise (empirical Bayes). Half of it is attributed to the removals, equally, and
    half to the sets. A factor common to all sets is ignored.

    Args:
        impacts: one number per removal, ``(removal,)``.
        sets: numbers of the removals in each set.
        harms: measured divergence of each set, ``(set,)``; nan if unknown.
        noise: standard deviation of a measurement, relative to it.
    """
    known = np.isfinite(harms)
    members = np.zeros((int(known.sum()), len(impacts)))
    for row, place in enumerate(int(one) for one in known.nonzero()[0]):
        members[row, list(sets[place])] = 1.0
    found, sums = harms[known], members @ impacts
    if not known.any():
        return CalibratedImpacts(impacts, 0.0, False)
    fit = (found > 0) & (sums > 0)
    prior = impacts * (np.exp(np.median(np.log(found[fit] / sums[fit]))) if fit.any() else 1.0)
    missing = found - members @ prior
    typical = max(float(np.median(np.abs(found))), _TINY)
    scale = np.maximum(np.maximum(np.abs(found), np.abs(members @ prior)), typical)
    beyond = float(((missing / scale) ** 2).mean()) - noise**2
    spread = max(beyond, _LEAST**2)
    own = spread / 2
    each = own * typical**2 / members.sum(1).mean()
    covariance = each * members @ members.T + np.diag((own + noise**2) * scale**2)
    costs = prior + each * members.T @ np.linalg.solve(covariance, missing)
    least = np.minimum(prior, 0.01 * np.abs(prior))
    return CalibratedImpacts(np.maximum(costs, least), own / (own + noise**2), beyond > _LEAST**2)
