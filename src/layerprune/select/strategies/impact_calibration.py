"""Corrects impacts of single removals by the measured impacts of sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEAST = 0.1  # sums that are this good, relatively, are taken as they are
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class CalibratedImpacts:
    """Impacts of removals, corrected by sets that were made.

    Attributes:
        costs: one number per removal, that add up to what sets were seen to do.
        trust: from 0 to 1, how much of what a made set does beyond such a sum is its own, and no accident of the data.
        is_needed: whether sets do something else than their sums say, beyond such accidents.
    """

    costs: np.ndarray
    trust: float
    is_needed: bool

    def of(self, sets: Sequence[Sequence[int]], harms: np.ndarray) -> np.ndarray:
        """What to believe of sets of which it was measured what they do."""
        sums = np.array([self.costs[list(some)].sum() for some in sets])
        return self.trust * harms + (1 - self.trust) * sums


def calibrate_impacts(
    impacts: np.ndarray, sets: Sequence[Sequence[int]], harms: np.ndarray, noise: float
) -> CalibratedImpacts:
    """Correct impacts by least squares, the more, the worse their sums predict.

    What a set does is taken for the sum of its removals' costs, a part of its own, and noise. How much of it is not in
    the impacts' sums, beyond the noise, is told from the sets themselves (empirical Bayes). Half of that is put down to
    the removals, each as likely as the other, and half to the sets. A factor that all have in common counts as nothing.

    Args:
        impacts: one number per removal.
        sets: removals, by number.
        harms: what each set did when it was made; nan where that is not known.
        noise: the standard deviation of one such measurement, relative to it.
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
