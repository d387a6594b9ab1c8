"""Sorts impacts into a few classes of colour."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from layerprune.picture.records import PictureGroup

NUM_CLASSES = 7
_LOGARITHMIC = 20.0  # ratio of a large to a small impact above which classes are equal ratios


@dataclass(frozen=True)
class ImpactScale:
    """Classes of impact, from the least to the largest.

    Attributes:
        bounds: between classes, rising; empty where all impacts are equal or none is known.
        low: the least impact; ``nan`` where none is known.
        high: the largest one.
    """

    bounds: tuple[float, ...]
    low: float
    high: float

    def class_of(self, group: PictureGroup) -> str:
        """Name the class of a group: ``i0`` … ``i6``, ``critical``, ``calibration`` or ``unknown``."""
        if group.verdict == "critical":
            return "critical"
        if group.verdict == "with_calibration":
            return "calibration"
        if not math.isfinite(group.impact):
            return "unknown"
        return f"i{sum(group.impact > bound for bound in self.bounds)}"


def impact_scale(groups: Iterable[PictureGroup]) -> ImpactScale:
    """Make the classes of the removable groups: equal steps, or equal ratios where impacts span a wide range.

    The ends are the 5th and 95th percentile, so that a single large impact leaves colours to the others.
    """
    impacts = sorted(g.impact for g in groups if g.verdict == "removable" and math.isfinite(g.impact))
    if not impacts:
        return ImpactScale((), math.nan, math.nan)
    low, high = impacts[0], impacts[-1]
    small, large = (impacts[round(share * (len(impacts) - 1))] for share in (0.05, 0.95))
    positive = [impact for impact in impacts if impact > 0]
    if not positive or large <= small:
        return ImpactScale((), low, high)
    floor = max(small, positive[0])
    shares = [step / NUM_CLASSES for step in range(1, NUM_CLASSES)]
    if large / floor > _LOGARITHMIC:
        return ImpactScale(tuple(floor * (large / floor) ** share for share in shares), low, high)
    return ImpactScale(tuple(small + (large - small) * share for share in shares), low, high)


def impact_text(impact: float) -> str:
    """Three digits."""
    return "unknown" if math.isnan(impact) else f"{impact:.3g}"
