"""Notes on how close a plan comes to its caps, and what holds it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from layerprune.graph import Group
from layerprune.select import MORE_SLACK, CapUse

_CLOSE = 0.005  # shares that differ by less are told as equal
_HALF = 0.5  # of a cap: a plan that uses less warns


def cap_note(use: CapUse, slack: float) -> str:
    """Say how much of a cap a plan uses; where it does not fill the cap, what fits and what holds it back."""
    what = "" if use.resource == "parameters" else f" of {use.resource}"
    line = f"{use.used:.1%} of a budget of {use.cap:.1%}{what} is used"
    if use.is_near:
        return line
    if use.held_by:
        return f"{line}: the budget of {use.held_by} is reached before"
    if use.fits > use.used + _CLOSE:
        allowed = f"slack={slack:g} lets a plan stay up to {slack:.0%}"
        if use.used < (1 - slack) * use.fits - _CLOSE:
            allowed += f" (up to {MORE_SLACK * slack:.0%} where that at least halves the impact)"
        return f"{line}, {use.fits:.1%} fits: {allowed} below what fits, for less impact; slack=0 takes all that fits"
    if use.in_all <= use.fits + _CLOSE:
        return f"{line}: all that can leave together takes {use.in_all:.1%}"
    if not use.is_proven:
        return f"{line}: no larger set of removals was found that fits, in the steps allowed"
    return f"{line}: no larger set of removals fits"


def is_short(use: CapUse) -> bool:
    """Whether a plan uses less than half of a cap."""
    return use.used < _HALF * use.cap and not use.held_by


def why_nothing(groups: Sequence[Group], num_unfitted: int) -> str:
    """Say why nothing can be removed at all, and what would change that.

    Args:
        groups: the model's groups.
        num_unfitted: removals that need calibration data, where there are none.
    """
    if num_unfitted:
        return "nothing can be removed without calibration data: pass calibration=, an iterable of batches"
    if not groups:
        return "nothing can be removed: no transform lies in the flow from the inputs to the outputs"
    reason, num = Counter(group.reason for group in groups).most_common(1)[0]
    return f"nothing can be removed: every group is critical ({num} of {len(groups)}: {reason})"
