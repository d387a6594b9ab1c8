"""Measurements of each removal on each batch, and the impacts that follow."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from layerprune.capture import EXAMPLE_INPUTS, Batch, Loss, Variants, on_batch
from layerprune.edits import Edit
from layerprune.fidelity import Divergence
from layerprune.graph import LayerGraph
from layerprune.proof import Removal
from layerprune.replay import ReusePolicy
from layerprune.surgery import Folded
from layerprune.tables import brief, count_text

_RESAMPLES = 200
_NAMED = 5  # most removals named in a note


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoringContext:
    """Inputs of a criterion.

    Attributes:
        model: the user's model; a criterion must not change it.
        graph: its layer graph.
        removals: removals to score; order is kept.
        batches: calibration data, at least one batch.
        seed: seed of all random draws.
        loss: calls the model once on an item and returns a loss, ``loss(model, item)``; None if the user gave none.
        progress: called after each step with the number of steps done and of all steps.
        folded: folded weights of all projections, by several fits; batch ``n`` uses ``folded[n % len(folded)]``, which
            held this batch out.
        fit: fits the projections of a set of edits on batches, and returns the folded weights.
        harm: divergence between outputs; chosen from the model and its output if None.
        missed: squared error and squared size of a removal's projections, for each batch; None if not fitted.
        reuse_policy: whether ablations may reuse outputs of the original's calls, and how much time this saved.
        variants: layer graphs of forwards on real data that differ from ``graph``.
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

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return brief(
            self, f"{name}: {count_text(len(self.removals), 'removal')}, {len(self.batches)} batches, seed {self.seed}"
        )

    @contextmanager
    def on(self, number: int) -> Generator[None]:
        """Name the batch in each error that is raised inside.

        Raises:
            CalibrationError: the user's forward or loss raised on calibration data.
            InputsError: the forward raised on the example inputs; fake tensors do not find every such error.
        """
        batch = self.batches[number]
        who = "" if self.loss is None else "loss(model, item)"
        given = {"where": f"batch {number} of the calibration data", "what": "calibration", "who": who}
        with on_batch(self.model, batch.inputs, **(EXAMPLE_INPUTS if batch.item is None else given)):
            yield


@dataclass(frozen=True, eq=False)
class Units:
    """Measurements of the smallest separable parts of the data: samples, else whole runs.

    Attributes:
        change: ``(unit, removal)``; 0, as ``size``, if a removal was not measured on the unit.
        size: ``(unit, removal)``, relative to which ``change`` is.
        batches: number of each unit's batch, ``(unit,)``.
    """

    change: np.ndarray
    size: np.ndarray
    batches: np.ndarray

    def __repr__(self) -> str:
        return brief(self, f"{self.change.shape[0]} units, {self.change.shape[1]} removals")

    def among(self, columns: np.ndarray, num: int) -> Units:
        """The same units with ``num`` removals, of which these are ``columns``; the others were not measured."""
        both = np.zeros((2, len(self.batches), num))
        both[:, :, columns] = self.change, self.size
        return Units(both[0], both[1], self.batches)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImpactScores:
    """Result of a criterion.

    Attributes:
        change: change that each removal makes on each batch, ``(batch, removal)``; nan if unknown, 0 together with
            ``size`` if it was not measured on that batch.
        size: scale of the change, ``(batch, removal)``; a sum over the batch, like ``change``.
        power: an impact is the ratio of the sums to this power.
        unit: unit of the impacts, for the plan.
        notes: notes for the user.
        is_ablation: whether ``change`` was measured by ablation.
        pairs: additional impact of two removals together, ``(removal, removal)``, half at either place.
        looked_at: measured share of each batch, ``(batch, removal)``; None if all of it.
        units: the measurements by sample; None if there are only those by batch.
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

    def __repr__(self) -> str:
        num_batches, num_removals = self.change.shape
        return brief(self, f"{num_removals} removals on {num_batches} batches, {self.unit}")

    @property
    def impacts(self) -> np.ndarray:
        """One number per removal, ``(removal,)``: 0 for no change, nan if unknown."""
        return self._of(np.ones_like(self.change))

    @property
    def num_batches(self) -> np.ndarray:
        """Number of batches that each removal was measured on, ``(removal,)``."""
        return self._measured.sum(0)

    @property
    def _measured(self) -> np.ndarray:
        return (self.change != 0) | (self.size != 0)

    @property
    def noise(self) -> float:
        """Median standard deviation of an impact on one batch, relative to the impact; 0 if unknown."""
        looked_at = (self.size != 0).astype(float) if self.looked_at is None else self.looked_at
        found: list[float] = []
        for change, size, share in zip(self.change.T, self.size.T, looked_at.T, strict=True):
            rows = (size != 0) & (share > 0) & np.isfinite(change)
            ratios = change[rows] / size[rows]
            if len(ratios) > 1 and ratios.mean() != 0:
                found.append(float(ratios.var(ddof=1) / ratios.mean() ** 2 * share[rows].mean()))
        return float(np.sqrt(np.median(found))) if found else 0.0

    def resampled(self, seed: int) -> np.ndarray:
        """Impacts on batches drawn with replacement, ``(draw, removal)``; no draws from a single batch.

        A removal measured on ``n`` batches draws ``n`` of them. Removals with the same batches share their draws.
        """
        num = len(self.change)
        if num < 2:
            return np.empty((0, self.change.shape[1]))
        measured = self._measured
        draws = np.random.default_rng(seed).integers(0, num, (_RESAMPLES, num))
        return np.stack([self._of(_times(draw, measured)) for draw in draws])

    def _of(self, times: np.ndarray) -> np.ndarray:
        """Impacts with each batch counted ``times``, ``(batch, removal)``."""
        change, size = (self.change * times).sum(0), (self.size * times).sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where((size == 0) & (change == 0), 0.0, change / size)
            return np.where(np.isinf(change) | np.isinf(size), np.nan, ratio) ** self.power


def about_harm(scene: ScoringContext, harm: Divergence | None) -> tuple[str, ...]:
    """A note on outputs that may be logits but are compared as plain numbers."""
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
    """Notes that name removals with an unknown change on a batch; ``change`` is ``(batch, removal)``."""
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
    """How often each batch is drawn for each removal, among the batches that it was measured on."""
    num = len(draw)
    times = np.zeros(measured.shape)
    for column in measured.any(0).nonzero()[0]:
        rows = measured[:, column].nonzero()[0]
        times[:, column] = np.bincount(rows[draw[: len(rows)] * len(rows) // num], minlength=num)
    return times
