"""Notes on the use of a plan's caps, and the limits of that use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from layerprune.graph import Group
from layerprune.select import BY_SUMS, MORE_SLACK, CapUse, Selection

_CLOSE = 0.005  # smaller differences of shares count as equal
_SURE = 0.5  # smallest share of draws of the calibration data that makes a choice clear
_HALF = 0.5  # of a cap: plans that use less get a warning


def cap_note(use: CapUse, slack: float) -> str:
    """Describe the use of a cap, and for an unfilled cap the larger set that fits and the reason."""
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
    """Explain why nothing can be removed; ``num_unfitted`` removals lack calibration data."""
    if num_unfitted:
        return "nothing can be removed without calibration data: pass calibration=, an iterable of batches"
    if not groups:
        return "nothing can be removed: no transform lies in the flow from the inputs to the outputs"
    reason, num = Counter(group.reason for group in groups).most_common(1)[0]
    return f"nothing can be removed: every group is critical ({num} of {len(groups)}: {reason})"


def doubtful_choices(selection: Selection) -> list[str]:
    """Note where the sum of impacts would choose differently on other calibration data of the same kind."""
    unsure = sum(share < _SURE for share in selection.recurrence)
    if not unsure:
        return []
    share = f"{unsure} of {len(selection.recurrence)} choices"
    if selection.strategy not in BY_SUMS:  # draws tell nothing about measured sets
        return [
            f"{share} are kept because the measured set was better, although fewer than half of the draws of the "
            "calibration data select them by the sum of impacts"
        ]
    return [
        f"{share} are selected by fewer than half of the draws of the calibration data: the data are too few to decide "
        "between removals of like impact; pass more"
    ]
