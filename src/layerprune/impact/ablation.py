"""Ablation: the truth about a removal, measured by making it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layerprune.calibration import Batch, Loss
from layerprune.edits import Edit, folds_of
from layerprune.impact.evidence import Evidence, Scene, about_harm
from layerprune.impact.handover import Handover, Unsure
from layerprune.impact.harm import Harm, harm_of
from layerprune.impact.loss import UNIT, check_finite, loss_on, number_of
from layerprune.impact.outcome import same_tensor
from layerprune.impact.racing import Rule, all_of_them
from layerprune.nested import tensors_in
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
    weights = [scene.folded] * len(sets) if folded is None else folded
    try:
        return _Ablation(scene, sets, harm, weights).run(rule)
    except Unsure:  # the ledger says so by now, and whole forwards are run
        return _Ablation(scene, sets, harm, weights).run(rule)


class _Ablation:
    """Makes sets on one batch after the other.

    A forward that does what the original did is handed what that one has returned; see
    :mod:`~layerprune.impact.handover`.
    """

    def __init__(
        self, scene: Scene, sets: Sequence[Sequence[Edit]], harm: Harm | None, weights: Sequence[Folded]
    ) -> None:
        self.scene, self.sets, self.weights = scene, sets, weights
        self.shade = real_shadow(scene.model, written=scene.graph.written_params)
        self.by = _ByOutput(harm or scene.harm) if harm is not None or scene.loss is None else _ByLoss(scene.loss)
        self.handover = Handover(self.shade, scene.graph, sets, weights, scene.ledger)
        self.change = np.zeros((len(scene.batches), len(sets)))
        self.size = np.zeros_like(self.change)

    def run(self, rule: Rule) -> Evidence:
        scene, change, size = self.scene, self.change, self.size
        known = (
            all(fold in held for fold in folds_of(edits)) for edits, held in zip(self.sets, self.weights, strict=True)
        )
        fitted = np.fromiter(known, dtype=bool, count=len(self.sets))
        change[:, np.logical_not(fitted)], size[:, np.logical_not(fitted)] = np.nan, 1.0
        rows = [int(row) for row in np.random.default_rng(scene.seed).permutation(len(change))]
        for number, row in enumerate(rows):
            going_on = rule(change[rows[:number]], size[rows[:number]]) & fitted
            if not going_on.any() and self.sets:
                break
            with scene.on(row):
                self.measure(row, [int(column) for column in going_on.nonzero()[0]], number)
        scene.progress(change.size, change.size)
        unknown = int((~np.isfinite(change[:, fitted])).any(0).sum())
        note = f"the impact of {unknown} removals is not known: with them the output or loss is no number any more"
        notes = (*((note,) if unknown else ()), *about_harm(scene, self.by.harm))
        return Evidence(change, size, 1.0, f"{self.by.unit}, by ablation", notes, is_ablation=True)

    def measure(self, row: int, columns: Sequence[int], number: int) -> None:
        """Run the original on a batch, then sets."""
        batch, handover = self.scene.batches[row], self.handover
        with self.shade.running(), handover.keeping(columns, batch.num_samples):
            self.by.start(self.shade, batch, row)
        self.by.original = handover.own(self.by.original)
        handover.check(columns, batch.num_samples, lambda: self.by.is_same(self.shade, batch))
        for column in columns:
            self.change[row, column], self.size[row, column] = self.made(row, column)
            handover.settle()
            self.scene.progress(number * len(self.sets) + column + 1, self.change.size)
        probe = handover.probe(columns)
        if probe is not None:
            again = self.made(row, probe, whole=True)
            before = (float(self.change[row, probe]), float(self.size[row, probe]))
            handover.confirm(bool(np.array_equal(again, before, equal_nan=True)))

    def made(self, row: int, column: int, *, whole: bool = False) -> tuple[float, float]:
        """What a set changes on a batch."""
        batch = self.scene.batches[row]
        with applied(self.shade.model, self.sets[column], self.weights[column]), self.shade.running():
            if whole:
                return self.by.compare(self.shade, batch)
            with self.handover.handing_on(column):
                return self.by.compare(self.shade, batch)


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

    def is_same(self, shade: Shadow, batch: Batch) -> bool:
        """Whether the model gives the same bits again."""
        pairs = tensors_in(self.original), tensors_in(_run(shade, batch))
        return len(pairs[0]) == len(pairs[1]) and all(map(same_tensor, *pairs))


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

    def is_same(self, shade: Shadow, batch: Batch) -> bool:
        """Whether the model gives the same loss again."""
        return number_of(loss_on(self.loss, shade.model, batch)) == self.original


def _run(shade: Shadow, batch: Batch) -> Any:
    inputs = shade.adapt(batch.inputs)
    return shade.model(*inputs.args, **inputs.kwargs)
