"""Influence: how far a removal moves the tensor that it replaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from layerprune.calibration import Batch
from layerprune.impact.evidence import Evidence, Scene
from layerprune.impact.harm import square
from layerprune.impact.shifts import Shift, Tensors, shifts_of
from layerprune.observe import observe
from layerprune.shadow import real_shadow


def score_influence(scene: Scene) -> Evidence:
    """Measure how far each removal moves the tensor it replaces, in one forward for all of them.

    For a substitute ``s`` of ``y`` this is ``‖y - s‖ / ‖y‖``; for an operand ``b`` that a merge ``c`` loses,
    ``‖b‖ / ‖c‖``. Several replaced tensors are taken as one. Block Influence (arXiv 2403.03853, section 3.2) is the
    same idea with 1 - cosine, which does not see a branch that only rescales.

    Args:
        scene: what to score, and on what; running sums only are kept, and what a later tensor is compared with.

    Returns:
        Scores from 0 for none, unbounded above.
    """
    shade = real_shadow(scene.model, written=scene.graph.written_params)
    shifts = [shifts_of(scene.graph, removal) for removal in scene.removals]
    change = np.full((len(scene.batches), len(shifts)), np.nan)
    size = np.full_like(change, np.nan)
    for row, batch in enumerate(scene.batches):
        norms: dict[Shift, tuple[float, float]] = {}
        tensors = Tensors(scene.graph, [s for some in shifts for s in some], _measuring(norms, batch))
        observe(shade, scene.graph, batch.inputs, tensors.wanted, tensors.see)
        for column, some in enumerate(shifts):
            change[row, column], size[row, column] = _sum(norms, some)
        scene.progress(row + 1, len(scene.batches))
    unknown = int(np.isnan(change).any(0).sum())
    note = f"the impact of {unknown} removals could not be measured (a tensor in question is hidden or not finite)"
    unit = "influence: relative change of the replaced tensor"
    return Evidence(change, size, 0.5, unit, (note,) if unknown else ())


def _measuring(norms: dict[Shift, tuple[float, float]], batch: Batch) -> Callable[[Shift, Tensor, Tensor], None]:
    def measure(shift: Shift, moved: Tensor, other: Tensor) -> None:
        change = shift.change(moved, other)
        if change is not None:
            norms[shift] = square(change, batch.mask), square(moved, batch.mask)

    return measure


def _sum(norms: Mapping[Shift, tuple[float, float]], shifts: list[Shift]) -> tuple[float, float]:
    found = [norms.get(shift, (np.nan, np.nan)) for shift in shifts]
    return sum(change for change, _ in found), sum(size for _, size in found)
