"""What was measured of each removal on each batch, and the impacts that follow."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from layerprune.capture import Batch, Loss, Variants
from layerprune.edits import Edit
from layerprune.errors import CalibrationError, InputsError, LayerPruneError, ended_by
from layerprune.fidelity import Divergence
from layerprune.graph import LayerGraph
from layerprune.inputs import describe, why_mismatched
from layerprune.proof import Removal
from layerprune.replay import ReusePolicy
from layerprune.surgery import Folded

_RESAMPLES = 200
_NAMED = 5  # removals, in a note


@dataclass(frozen=True, eq=False)
class ScoringContext:
    """What a criterion may look at.

    Attributes:
        model: the user's model; to be left as it is.
        graph: its layer graph.
        removals: what to score; order counts.
        batches: calibration data, at least one batch.
        seed: for whatever is drawn.
        loss: calls the model once on an item and returns a loss, ``loss(model, item)``; None where the user gave none.
        progress: told after each step how many of how many are done.
        folded: for removals by projection, what these make of the transforms that take them in: several fits, of which
            a batch is judged by one that has not seen it, by its number.
        fit: finds the same, once, for the projections of a set of edits, on the batches given.
        harm: how outputs are compared; told from the model and its output if None.
        missed: for such a removal, by batch how far its projections are from what they stand for: the squared distance
            and the squared size; None where they were not fitted.
        reuse_policy: whether ablations may hand outputs of the original's forward on, and what that has saved.
        variants: what the model's forward did on real data, where that is not what the layer graph says.
    """

    model: nn.Module
    graph: LayerGraph
    removals: Sequence[Removal]
    batches: Sequence[Batch]
    seed: int = 0
    loss: Loss | None = None
    progress: Callable[[int, int], None] = lambda done, total: None
    folded: Sequence[Folded] = ({},)
    fit: Callable[[Sequence[Edit], Sequence[Batch]], Folded] = lambda edits, batches: {}
    harm: Divergence | None = None
    missed: Callable[[Removal], Sequence[tuple[float, float]] | None] = lambda removal: None
    reuse_policy: ReusePolicy = field(default_factory=ReusePolicy)
    variants: Variants = field(default_factory=Variants)

    @contextmanager
    def on(self, number: int) -> Generator[None]:
        """Say of an error that comes up inside on which batch it did.

        Raises:
            CalibrationError: whatever the user's forward or loss raised.
            InputsError: what the forward raised on the example inputs, of which fake tensors do not tell all.
        """
        try:
            yield
        except LayerPruneError:
            raise
        except Exception as error:  # the user's own forward or loss, on the user's data
            batch = self.batches[number]
            if batch.item is None:
                name = type(self.model).__name__
                what = f"{name}.forward raised on the example inputs ({describe(batch.inputs)})"
                why = why_mismatched(self.model, batch.inputs, "example_inputs", error)
                why = why or "pass example_inputs= a tensor, tuple, dict or object that it takes"
                raise InputsError(ended_by(f"{what}; {why}", error)) from error
            why = why_mismatched(self.model, batch.inputs, "calibration", error)
            why = why or f"it does not fit {type(self.model).__name__}.forward ({describe(batch.inputs)})"
            why = why if self.loss is None else "it was loss(model, item) that raised"
            what = f"impacts could not be measured on batch {number} of the calibration data; {why}"
            raise CalibrationError(ended_by(what, error)) from error


@dataclass(frozen=True, eq=False)
class Units:
    """What was found of the smallest parts of the data that can be told apart: samples, else what was run at once.

    Attributes:
        change: ``(unit, removal)``, 0 together with ``size`` where a removal was not measured on it.
        size: what that is relative to, ``(unit, removal)``.
        batches: the number of the batch that each unit is of, ``(unit,)``.
    """

    change: np.ndarray
    size: np.ndarray
    batches: np.ndarray

    def among(self, columns: np.ndarray, num: int) -> Units:
        """The same where these removals are some of more, of which nothing was measured by unit."""
        both = np.zeros((2, len(self.batches), num))
        both[:, :, columns] = self.change, self.size
        return Units(both[0], both[1], self.batches)


@dataclass(frozen=True, eq=False)
class ImpactScores:
    """What a criterion found.

    Attributes:
        change: how far each removal moves something on each batch, ``(batch, removal)``; nan where it is not known, 0
            together with ``size`` where it was not measured on that batch.
        size: what that is relative to, ``(batch, removal)``; sums, like ``change``.
        power: an impact is the ratio of the sums to this power.
        unit: what the impacts are, for the plan.
        notes: what the user should know about them.
        is_ablation: whether removals were made, and ``change`` is what they did to the output.
        pairs: how much more a pair costs than its parts, ``(removal, removal)``, half of it at either place.
        looked_at: how much of each batch each removal was measured on, ``(batch, removal)``; None for all of it.
        units: the same by sample, where that was measured; None for batches.
    """

    change: np.ndarray
    size: np.ndarray
    power: float
    unit: str
    notes: tuple[str, ...] = ()
    pairs: np.ndarray | None = None
    is_ablation: bool = False
    looked_at: np.ndarray | None = None
    units: Units | None = None

    @property
    def impacts(self) -> np.ndarray:
        """One number per removal, 0 for no harm; nan where it could not be measured."""
        return self._of(np.ones_like(self.change))

    @property
    def num_batches(self) -> np.ndarray:
        """On how many batches each removal was measured."""
        return self._measured.sum(0)

    @property
    def _measured(self) -> np.ndarray:
        return (self.change != 0) | (self.size != 0)

    @property
    def noise(self) -> float:
        """By how much an impact on one batch is off, relative to it: the median standard deviation; 0 if unknown."""
        looked_at = (self.size != 0).astype(float) if self.looked_at is None else self.looked_at
        found: list[float] = []
        for change, size, share in zip(self.change.T, self.size.T, looked_at.T, strict=True):
            rows = (size != 0) & (share > 0) & np.isfinite(change)
            ratios = change[rows] / size[rows]
            if len(ratios) > 1 and ratios.mean() != 0:
                found.append(float(ratios.var(ddof=1) / ratios.mean() ** 2 * share[rows].mean()))
        return float(np.sqrt(np.median(found))) if found else 0.0

    def resampled(self, seed: int) -> np.ndarray:
        """Impacts on batches drawn with replacement, ``(draw, removal)``; none from a single batch.

        A removal that was measured on some of the batches draws as many of these; the draws of two removals that were
        measured on the same ones are the same.
        """
        num = len(self.change)
        if num < 2:
            return np.empty((0, self.change.shape[1]))
        measured = self._measured
        draws = np.random.default_rng(seed).integers(0, num, (_RESAMPLES, num))
        return np.stack([self._of(_times(draw, measured)) for draw in draws])

    def _of(self, times: np.ndarray) -> np.ndarray:
        """Impacts with each batch counted so many times, ``(batch, removal)``."""
        change, size = (self.change * times).sum(0), (self.size * times).sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where((size == 0) & (change == 0), 0.0, change / size)
            return np.where(np.isinf(change) | np.isinf(size), np.nan, ratio) ** self.power


def about_harm(scene: ScoringContext, harm: Divergence | None) -> tuple[str, ...]:
    """Say of what may be logits, and is compared as plain numbers, how to have it compared as logits."""
    outputs = scene.graph.outputs
    if harm is None or harm.kind == "distribution" or len(outputs) != 1:
        return ()
    value = scene.graph.values[outputs[0]]
    if (
        len(value.shape) != 2
        or value.shape[1] < 2
        or value.layer < 0
        or scene.graph.layers[value.layer].kind != "transform"
    ):
        return ()
    return (
        f"the output, {value.shape[1]} numbers a sample, is compared by its relative change; if these are logits of "
        "classes, pass kind='distribution', and it is by the KL divergence, or pass loss=",
    )


def about_unknown(removals: Sequence[Removal], change: np.ndarray, why: str) -> tuple[str, ...]:
    """Name the removals of which a criterion found nothing on some batch, ``change`` being ``(batch, removal)``."""
    lost = [removal for removal, gone in zip(removals, np.isnan(change.sum(0)), strict=True) if gone]
    by_projection = "a projection takes its place: criterion='ablation' makes it, where it could be fitted"
    kinds = ((why, False), (by_projection, True))
    named = [(reason, [r.name for r in lost if r.needs_calibration == kind]) for reason, kind in kinds]
    return tuple(_not_known(names, reason) for reason, names in named if names)


def _not_known(unknown: Sequence[str], why: str) -> str:
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    which = "1 removal" if len(unknown) == 1 else f"{len(unknown)} removals"
    return f"the impact of {which} is not known ({why}): {'; '.join(unknown[:_NAMED])}{more}"


def _times(draw: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """How often each batch is drawn for each removal, from those that it was measured on."""
    num = len(draw)
    times = np.zeros(measured.shape)
    for column in measured.any(0).nonzero()[0]:
        rows = measured[:, column].nonzero()[0]
        times[:, column] = np.bincount(rows[draw[: len(rows)] * len(rows) // num], minlength=num)
    return times
