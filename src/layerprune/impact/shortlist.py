"""Shortlist: estimate all removals in one pass, make the promising ones, and believe what they do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layerprune.impact.ablation import score_ablation
from layerprune.impact.evidence import Evidence, Scene
from layerprune.impact.output_change import score_output_change

#: How many removals are made and measured; beyond it the estimate chooses which.
LONGEST = 64


def score_shortlist(scene: Scene) -> Evidence:
    """Measure the removals that may be worth it by ablation, and estimate the others.

    Up to :data:`LONGEST` removals are all measured. Of more, the estimate of the output's change chooses those of least
    harm, and the others' estimates are brought to the scale of what was measured.

    Args:
        scene: what to score, and on what.
    """
    if len(scene.removals) <= LONGEST:
        return score_ablation(scene)
    estimate = score_output_change(scene)
    order = np.argsort(np.nan_to_num(estimate.impacts, nan=np.inf), kind="stable")[:LONGEST]
    some = np.sort(order)
    truth = score_ablation(replace(scene, removals=[scene.removals[i] for i in some]))
    ratios = truth.impacts / np.where(estimate.impacts[some] > 0, estimate.impacts[some], np.nan)
    scale = float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else 1.0
    change, size = estimate.change * scale, np.array(estimate.size)
    change[:, some], size[:, some] = truth.change, truth.size
    note = f"{LONGEST} of {len(scene.removals)} removals were measured by ablation, the others are estimates"
    notes = (*estimate.notes, *truth.notes, note)
    return Evidence(change, size, truth.power, truth.unit, notes, is_ablation=True)
