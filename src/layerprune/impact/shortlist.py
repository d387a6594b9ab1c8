"""Estimates all removals in one pass and measures the promising ones by ablation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from layerprune.fidelity import Divergence
from layerprune.impact.ablation import ablate
from layerprune.impact.estimators.output_change import score_output_change
from layerprune.impact.racing import contenders
from layerprune.impact.scores import ImpactScores, ScoringContext

#: Up to this many removals are all measured; of more, the estimate chooses half, at least this many.
LONGEST = 256

#: A removal of the better half is measured on further batches until the standard error of its impact is below this
#: share of the impact, or of the half's mean impact.
PRECISION = 0.3

_ENOUGH = 8  # points to fit a line through
_PASS = 3  # duration of a forward with backward, in forwards


def score_shortlist(scene: ScoringContext, harm: Divergence | None = None) -> ImpactScores:
    """Measure promising removals by ablation, and estimate the others.

    Up to :data:`LONGEST` removals are all measured. Of more, the estimated output change chooses those with the least
    impact. Estimates of the others are scaled to the measured impacts by a line through the logarithms.

    Args:
        scene: removals and calibration data.
        harm: divergence between outputs; chosen from the model and its output if None.
    """
    num = len(scene.removals)
    if num <= LONGEST:
        return _measured(scene, harm)
    num_measured = max(LONGEST, num // 2)
    passes = _PASS * len(scene.batches)
    total = passes + num_measured * len(scene.batches)
    estimate = score_output_change(replace(scene, progress=_telling(scene, 0, _PASS, total)), harm)
    order = np.argsort(np.nan_to_num(estimate.impacts, nan=-np.inf), kind="stable")  # unknown ones are measured
    some = np.sort(order[:num_measured])
    some_of_scene = replace(
        scene, removals=[scene.removals[i] for i in some], progress=_telling(scene, passes, 1, total)
    )
    truth = _measured(some_of_scene, harm)
    impacts = estimate.impacts
    scale = _brought(impacts, impacts[some], truth.impacts) / np.where(impacts > 0, impacts, 1.0)
    change, size = estimate.change * scale, np.array(estimate.size)
    change[:, some], size[:, some] = truth.change, truth.size
    note = f"{len(some)} of {num} removals were measured by ablation, the others are estimates"
    notes = tuple(dict.fromkeys((*estimate.notes, *truth.notes, note)))
    units = None if truth.units is None else truth.units.among(some, num)
    return ImpactScores(
        change=change, size=size, power=truth.power, unit=truth.unit, notes=notes, is_ablation=True, units=units
    )


def _telling(scene: ScoringContext, before: int, weight: int, total: int) -> Callable[[int, int], None]:
    """Report the progress of a part as progress of the whole."""

    def tell(done: int, _of: int) -> None:
        scene.progress(before + weight * done, total)

    return tell


def _measured(scene: ScoringContext, harm: Divergence | None) -> ImpactScores:
    """Ablation, each removal on as many batches as the choice needs."""
    found = ablate(scene, [removal.edits for removal in scene.removals], harm, rule=contenders(PRECISION))
    num = len(scene.batches)
    looked_at = np.ones(0) if found.looked_at is None else found.looked_at[:, found.looked_at.any(0)]
    share = float(looked_at.mean()) if looked_at.size else 1.0
    if share > 1 - 1e-6:
        return found
    least = "a part of one" if looked_at.sum(0).min() < 1 - 1e-6 else "one"
    note = (
        f"removals were made on as many of the {num} calibration batches as their impacts called for, those of largest "
        f"impact on {least}: {num * share:.1f} on average; criterion='ablation' takes all"
    )
    return replace(found, notes=(*found.notes, note))


def _brought(estimates: np.ndarray, known: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Estimates scaled to measured impacts: a power law, fitted to the removals with both."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = np.log(known), np.log(truth)
        use = np.isfinite(x) & np.isfinite(y)
        if use.sum() >= _ENOUGH and np.ptp(x[use]) > 0:
            slope, offset = np.polyfit(x[use], y[use], 1)
            if slope > 0:
                return np.exp(offset + slope * np.log(estimates))
        return estimates * (np.exp(np.median(y[use] - x[use])) if use.any() else 1.0)
