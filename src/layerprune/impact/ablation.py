"""Ablation: the truth about a removal, measured by making it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layerprune.calibration import Batch, Loss
from layerprune.edits import Edit, folds_of
from layerprune.impact.evidence import Evidence, Scene, about_harm
from layerprune.impact.harm import Harm, harm_of
from layerprune.impact.loss import UNIT, check_finite, loss_on, number_of
from layerprune.impact.racing import Rule, all_of_them
from layerprune.projection import Folded
from layerprune.shadow import Shadow, real_shadow
from layerprune.surgery import applied


def score_ablation(scene: Scene, harm: Harm | None = None) -> Evidence:
    """Make each removal, run, compare with what the original does, and undo it; one pass per removal.

    Compared are the outputs or, where the user gave a loss, the losses: then the impact is by how much this grows, and
    below 0 where a removal does good.

    Args:
        scene: what to score, and on what.
        harm: how outputs are compared; told from the model and its output if None.
    """
    return ablate(scene, [removal.edits for removal in scene.removals], harm)


def ablate(
    scene: Scene,
    sets: Sequence[Sequence[Edit]],
    harm: Harm | None = None,
    *,
    folded: Sequence[Folded] | None = None,
    rule: Rule = all_of_them,
) -> Evidence:
    """Make sets of edits, one after the other, and measure what each does to the output or to the user's loss.

    Args:
        scene: what to measure on; its removals are not looked at.
        sets: what to make; the impact of one whose projections are not known is nan.
        harm: as for :func:`score_ablation`; outputs are compared where it is given, whatever the scene's loss.
        folded: for each set what its projections make of the transforms that take them in; the scene's if None.
        rule: which sets are measured on the next batch; see :mod:`~layerprune.impact.racing`. Batches come in an order
            drawn from the scene's seed, as data may be sorted.

    Returns:
        Evidence with one column per set.
    """
    shade = real_shadow(scene.model, written=scene.graph.written_params)
    by = _ByOutput(harm or scene.harm) if harm is not None or scene.loss is None else _ByLoss(scene.loss)
    change = np.zeros((len(scene.batches), len(sets)))
    size = np.zeros_like(change)
    weights = [scene.folded] * len(sets) if folded is None else folded
    known = (all(fold in held for fold in folds_of(edits)) for edits, held in zip(sets, weights, strict=True))
    fitted = np.fromiter(known, dtype=bool, count=len(sets))
    change[:, np.logical_not(fitted)], size[:, np.logical_not(fitted)] = np.nan, 1.0
    rows = [int(row) for row in np.random.default_rng(scene.seed).permutation(len(change))]
    for number, row in enumerate(rows):
        going_on = rule(change[rows[:number]], size[rows[:number]]) & fitted
        if not going_on.any() and sets:
            break
        batch = scene.batches[row]
        with scene.on(row):
            with shade.running():
                by.start(shade, batch, row)
            for column, edits in enumerate(sets):
                if going_on[column]:
                    with applied(shade.model, edits, weights[column]), shade.running():
                        change[row, column], size[row, column] = by.compare(shade, batch)
                scene.progress(number * len(sets) + column + 1, change.size)
    scene.progress(change.size, change.size)
    unknown = int((~np.isfinite(change[:, fitted])).any(0).sum())
    note = f"the impact of {unknown} removals is not known: with them the output or loss is no number any more"
    notes = (*((note,) if unknown else ()), *about_harm(scene, by.harm))
    return Evidence(change, size, 1.0, f"{by.unit}, by ablation", notes, is_ablation=True)


class _ByOutput:
    """How far outputs are from the original's."""

    def __init__(self, harm: Harm | None) -> None:
        self.harm = harm
        self.original: Any = None

    @property
    def unit(self) -> str:
        return self.harm.unit if self.harm else ""

    def start(self, shade: Shadow, batch: Batch, _row: int) -> None:
        self.original = _run(shade, batch)
        self.harm = self.harm or harm_of(shade.model, self.original)

    def compare(self, shade: Shadow, batch: Batch) -> tuple[float, float]:
        assert self.harm is not None
        return self.harm.between(self.original, _run(shade, batch), batch.mask)


class _ByLoss:
    """By how much the user's loss is above the original's; a batch weighs by its samples."""

    unit = UNIT
    harm = None

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.original = 0.0

    def start(self, shade: Shadow, batch: Batch, row: int) -> None:
        self.original = number_of(loss_on(self.loss, shade.model, batch))
        check_finite(self.original, row)

    def compare(self, shade: Shadow, batch: Batch) -> tuple[float, float]:
        change = number_of(loss_on(self.loss, shade.model, batch)) - self.original
        return batch.num_samples * change, float(batch.num_samples)


def _run(shade: Shadow, batch: Batch) -> Any:
    inputs = shade.adapt(batch.inputs)
    return shade.model(*inputs.args, **inputs.kwargs)
