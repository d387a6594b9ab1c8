"""Scores a removal by the relative change of the tensor that it replaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from layerprune.capture import Probe, See, real_sandbox
from layerprune.fidelity import norm
from layerprune.impact.estimators.perturbations import Perturbation, Tensors, perturbations_of
from layerprune.impact.scores import ImpactScores, ScoringContext, about_unknown


def score_influence(scene: ScoringContext) -> ImpactScores:
    """Measure how far each removal moves the tensor that it replaces, in one forward for all removals.

    A substitute ``s`` of ``y`` scores ``‖y - s‖ / ‖y‖``, an operand ``b`` that a merge with result ``c`` loses
    ``‖b‖ / ‖c‖``, a projection ``P s`` of a tensor with other channels ``‖y - P s‖ / ‖y‖``. Several replaced tensors
    are taken as one. Block Influence (arXiv 2403.03853, section 3.2) uses 1 - cosine instead, which is 0 for a branch
    that only rescales.

    Returns:
        One score per removal: 0 for no change, without an upper bound.
    """
    shade = real_sandbox(scene.model, written=scene.graph.written_params)
    shifts = [perturbations_of(scene.graph, removal) for removal in scene.removals]
    tensors = Tensors(scene.graph, [shift for some in shifts for shift in some])
    observer = Probe(shade, scene.graph, tensors.wanted, scene.variants)
    change = np.full((len(scene.batches), len(shifts)), np.nan)
    size = np.full_like(change, np.nan)
    for row, batch in enumerate(scene.batches):
        norms = _Norms(batch.mask)

        def begin(norms: _Norms = norms) -> See:
            norms.forget()
            return tensors.seeing(norms.measure, keeps=False)

        with scene.on(row):
            observer.run(batch.inputs, begin)
        change[row], size[row] = norms.of(shifts)
        scene.progress(row + 1, len(scene.batches))
    for column, removal in enumerate(scene.removals):
        pairs = scene.missed(removal) if removal.needs_calibration else None
        if pairs is not None:
            change[:, column], size[:, column] = np.array(pairs).T
    notes = about_unknown(scene.removals, change, "a tensor in question is not seen in a run, or not finite")
    unit = "influence: relative change of the replaced tensor"
    return ImpactScores(change=change, size=size, power=0.5, unit=unit, notes=notes)


class _Norms:
    """Norms of one batch's tensors and perturbations. All are copied from the device at once, at the end."""

    def __init__(self, mask: Tensor | None) -> None:
        self.mask = mask
        self.sizes: dict[int, Tensor] = {}
        self.changes: dict[Perturbation, Tensor] = {}

    def forget(self) -> None:
        self.sizes.clear()
        self.changes.clear()

    def measure(self, shift: Perturbation, moved: Tensor, other: Tensor) -> None:
        if not shift.lost and moved.shape != other.shape:
            return
        self.changes[shift] = norm(other if shift.lost else other - moved, self.mask)
        if shift.moved not in self.sizes:
            self.sizes[shift.moved] = norm(moved, self.mask)

    def of(self, shifts: Sequence[Sequence[Perturbation]]) -> tuple[list[float], list[float]]:
        """Change and size of each removal, ``(removal,)`` each; nan if a tensor was not seen."""
        known = dict(zip(self.changes, _fetched(self.changes.values()), strict=True))
        sizes = dict(zip(self.sizes, _fetched(self.sizes.values()), strict=True))
        change = [sum(known.get(shift, np.nan) for shift in some) for some in shifts]
        return change, [sum(sizes.get(shift.moved, np.nan) for shift in some) for some in shifts]


def _fetched(norms: Iterable[Tensor]) -> list[float]:
    """Squared norms, in one copy from the device."""
    found = list(norms)
    return torch.stack([norm.to(found[0].device) for norm in found]).double().square().tolist() if found else []
