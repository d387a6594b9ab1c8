"""Measures the impact of removals by ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layerprune.capture import Batch, Loss, Sandbox, real_sandbox
from layerprune.edits import Edit, folds_of
from layerprune.errors import CalibrationError
from layerprune.fidelity import Divergence, divergence_of
from layerprune.impact.estimators.loss import UNIT, check_finite, loss_on, number_of
from layerprune.impact.racing import Rule, all_of_them
from layerprune.impact.scores import ImpactScores, ScoringContext, Units, about_harm
from layerprune.impact.subbatches import SubBatch, adds_up, cut, ends, fewest_samples, whole
from layerprune.replay import CannotReuse, OutputReuse
from layerprune.surgery import Folded, applied
from layerprune.tensors import same_tensor, tensors_by_place


def score_ablation(scene: ScoringContext, harm: Divergence | None = None) -> ImpactScores:
    """Measure each removal by ablation: apply it, run the model, compare with the original, undo it.

    The comparison is between outputs, or between losses if the user gave a loss. With a loss, the impact is the
    increase of the loss; it is negative if the removal improves the model.

    Args:
        scene: removals and calibration data.
        harm: divergence between outputs; chosen from the model and its output if None.
    """
    return ablate(scene, [removal.edits for removal in scene.removals], harm)


def ablate(
    scene: ScoringContext,
    sets: Sequence[Sequence[Edit]],
    harm: Divergence | None = None,
    *,
    folded: Sequence[Sequence[Folded]] | None = None,
    rule: Rule = all_of_them,
) -> ImpactScores:
    """Apply sets of edits in turn, and measure how far each changes the output or the user's loss.

    Args:
        scene: calibration data; its removals are not used.
        sets: sets of edits; the impact of a set whose projections were not fitted is nan.
        harm: divergence between outputs; if given, outputs are compared even if the scene has a loss.
        folded: per set, the folded weights of several fits; batch ``n`` uses fit ``n % len``. The scene's if None.
        rule: chooses the sets to measure next, see ``impact/racing``. Batches come in an order drawn from the scene's
            seed. They are cut into parts if the rule drops sets and the model's outputs show that batches can be
            cut. ``change`` and ``size`` are per batch in both cases.

    Returns:
        Impact scores with one column per set.
    """
    weights = [scene.folded] * len(sets) if folded is None else folded
    try:
        return _Ablation(scene, sets, harm, weights).run(rule)
    except CannotReuse:  # the reuse policy has recorded this: the second try runs whole forwards
        return _Ablation(scene, sets, harm, weights).run(rule)


class _Ablation:
    """Measures sets of edits batch by batch; unchanged calls reuse the original's outputs (``replay/reuse``)."""

    def __init__(
        self,
        scene: ScoringContext,
        sets: Sequence[Sequence[Edit]],
        harm: Divergence | None,
        weights: Sequence[Sequence[Folded]],
    ) -> None:
        self.scene, self.sets, self.weights = scene, sets, weights
        self.shade = real_sandbox(scene.model, written=scene.graph.written_params)
        self.by = _ByOutput(harm or scene.harm) if harm is not None or scene.loss is None else _ByLoss(scene.loss)
        self.output_reuse = OutputReuse(
            self.shade, scene.graph, sets, [held[0] for held in weights], scene.reuse_policy
        )
        self.num = len(scene.batches) * len(sets)

    def run(self, rule: Rule) -> ImpactScores:
        scene, rounds = self.scene, self.rounds(in_parts=rule is not all_of_them)
        known = (
            all(fold in held for held in fits for fold in folds_of(edits))
            for edits, fits in zip(self.sets, self.weights, strict=True)
        )
        fitted = np.fromiter(known, dtype=bool, count=len(self.sets))
        table, parts = np.zeros((2, len(rounds), len(self.sets))), list[Units]()
        table[0][:, np.logical_not(fitted)], table[1][:, np.logical_not(fitted)] = np.nan, 1.0
        change, size, looked_at = np.zeros((3, len(scene.batches), len(self.sets)))
        done = 0.0
        for number, one in enumerate(rounds):
            going_on = rule(table[0, :number], table[1, :number], done) & fitted
            if not going_on.any() and self.sets:
                break
            columns = [int(column) for column in going_on.nonzero()[0]]
            with scene.on(one.row):
                parts.append(self.measure(one, columns, done))
            table[:, number] += parts[-1].change.sum(0), parts[-1].size.sum(0)
            looked_at[one.row, columns] += one.share
            done += one.share
        for number, one in enumerate(rounds):
            change[one.row] += table[0, number]
            size[one.row] += table[1, number]
        scene.progress(self.num, self.num)
        if (size[:, fitted].sum(0) == 0).any():
            raise CalibrationError(
                "the calibration data tell nothing: no element of the model's output on them counts. Pass batches of "
                "one sample or more, with attention masks that are not zero everywhere"
            )
        unknown = int((~np.isfinite(change[:, fitted])).any(0).sum())
        note = f"the impact of {unknown} removals is not known: with them the output or loss is no number any more"
        notes = (*((note,) if unknown else ()), *about_harm(scene, self.by.harm))
        units = Units(*(np.concatenate(some) for some in zip(*map(_fields, parts), strict=True))) if parts else None
        unit = f"{self.by.unit}, by ablation"
        return ImpactScores(
            change=change,
            size=size,
            power=1.0,
            unit=unit,
            notes=notes,
            pairs=None,
            looked_at=looked_at,
            is_ablation=True,
            units=units,
        )

    def rounds(self, *, in_parts: bool) -> list[SubBatch]:
        """The batches, or their parts, in the order of measurement."""
        found, reuse_policy = whole(self.scene.batches, self.scene.seed), self.scene.reuse_policy
        if in_parts and reuse_policy.fewest is None:
            reuse_policy.fewest = self.fewest(max(found, key=lambda one: one.batch.num_samples))
        parts = cut(found, reuse_policy.fewest) if in_parts and reuse_policy.fewest else found
        reuse_policy.share = parts[0].share if in_parts else reuse_policy.share
        return parts

    def fewest(self, one: SubBatch) -> int:
        """The smallest number of samples in a part that behaves as it does in the whole batch; 0 if no part does."""
        try:
            with self.shade.running():
                return self.by.fewest(self.shade, one)
        except Exception:  # the model may need the whole batch; an error of another cause is raised again there
            return 0

    def measure(self, one: SubBatch, columns: Sequence[int], done: float) -> Units:
        """Run the original on a batch or a part of it, then the sets in ``columns``, after ``done`` earlier batches."""
        batch, output_reuse = one.batch, self.output_reuse
        with self.shade.running(), output_reuse.keeping(columns, batch.num_samples):
            self.by.start(self.shade, batch, one.row)
        self.by.original = output_reuse.own(self.by.original)
        output_reuse.check(columns, batch.num_samples, lambda: self.by.is_same(self.shade, batch))
        found: dict[int, np.ndarray] = {}
        for column in columns:
            found[column] = self.made(one, column)
            output_reuse.settle()
            self.scene.progress(int(done * len(self.sets) + one.share * (column + 1)), self.num)
        probe = output_reuse.probe(columns)
        if probe is not None:
            again = self.made(one, probe, whole=True)
            output_reuse.confirm(bool(np.array_equal(again, found[probe], equal_nan=True)))
        num = min((each.shape[1] for each in found.values()), default=1)
        is_apart = all(each.shape[1] == num for each in found.values())
        both = np.zeros((2, num if is_apart else 1, len(self.sets)))
        for column, each in found.items():
            both[:, :, column] = each if is_apart else each.sum(1, keepdims=True)
        return Units(both[0], both[1], np.full(both.shape[1], one.row))

    def made(self, one: SubBatch, column: int, *, whole: bool = False) -> np.ndarray:
        """Change and size of a set on a batch, ``(2, sample)``, with a fit that held this batch out."""
        batch, fits = one.batch, self.weights[column]
        with applied(self.shade.model, self.sets[column], fits[one.row % len(fits)]), self.shade.running():
            if whole or not self.output_reuse.outcomes:
                return self.by.compare(self.shade, batch)
            try:
                with self.output_reuse.handing_on(column):
                    return self.by.compare(self.shade, batch)
            except Exception:  # an error of the edited model is raised again by the whole forward
                self.by.compare(self.shade, batch)
                self.output_reuse.doubt("an edited model raises only where it goes on from what was kept")
                raise CannotReuse from None


def _fields(units: Units) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return units.change, units.size, units.batches


class _ByOutput:
    """Divergence from the original's outputs."""

    def __init__(self, harm: Divergence | None) -> None:
        self.harm = harm
        self.original: Any = None

    @property
    def unit(self) -> str:
        return self.harm.unit if self.harm else ""

    def start(self, shade: Sandbox, batch: Batch, _row: int) -> None:
        self.original = shade.call(batch.inputs)
        self.harm = self.harm or divergence_of(shade.model, self.original)

    def compare(self, shade: Sandbox, batch: Batch) -> np.ndarray:
        assert self.harm is not None
        return self.harm.by_sample(self.original, shade.call(batch.inputs), batch.mask, batch.num_samples)

    def fewest(self, shade: Sandbox, one: SubBatch) -> int:
        """The smallest number of samples in a part, if the model's output on a part equals that part of the output."""
        out = shade.call(one.batch.inputs)
        harm = self.harm or divergence_of(shade.model, out)
        fewest = fewest_samples(harm.between(out, out, one.batch.mask)[1] / one.batch.num_samples)
        part = cut([one], fewest)[-1]
        is_part = part.share < 1 and ends(harm.outputs(shade.call(part.batch.inputs)), harm.outputs(out))
        return fewest if is_part else 0

    def is_same(self, shade: Sandbox, batch: Batch) -> bool:
        pairs = tensors_by_place(self.original), tensors_by_place(shade.call(batch.inputs))
        return len(pairs[0]) == len(pairs[1]) and all(map(same_tensor, *pairs))


class _ByLoss:
    """Increase of the user's loss over the original's loss; a batch weighs by its number of samples."""

    unit = UNIT
    harm = None

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.original = 0.0

    def start(self, shade: Sandbox, batch: Batch, row: int) -> None:
        self.original = number_of(loss_on(self.loss, shade.model, batch))
        check_finite(self.original, row)

    def compare(self, shade: Sandbox, batch: Batch) -> np.ndarray:
        change = number_of(loss_on(self.loss, shade.model, batch)) - self.original
        return np.array([[batch.num_samples * change], [float(batch.num_samples)]])

    def fewest(self, shade: Sandbox, one: SubBatch) -> int:
        """The smallest number of samples in a part, if the loss on a batch is the mean of the losses on its parts."""
        fewest = fewest_samples(1)
        parts = cut([one], fewest)
        losses = [(number_of(loss_on(self.loss, shade.model, part.batch)), part.share) for part in parts]
        is_mean = len(parts) > 1 and adds_up(losses, number_of(loss_on(self.loss, shade.model, one.batch)))
        return fewest if is_mean else 0

    def is_same(self, shade: Sandbox, batch: Batch) -> bool:
        return number_of(loss_on(self.loss, shade.model, batch)) == self.original
