"""Fits projections on half of the batches and measures them on the other half."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from layerprune.capture import Batch
from layerprune.edits import Edit, folds_of
from layerprune.fidelity import hold_out_of
from layerprune.fitting import Projections, fold_alone, missed_by
from layerprune.impact.scores import ScoringContext
from layerprune.surgery import Folded

_MOST_BYTES = 2**30  # of the weights of sets that fold projections


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Several fits of the same projections; each batch is measured with a fit that held this batch out.

    Attributes:
        fits: batch ``n`` is measured with ``fits[n % len(fits)]``; a single fit has seen all batches.
    """

    fits: Sequence[Projections] = (Projections(),)

    @property
    def weights(self) -> tuple[Folded, ...]:
        return tuple(fit.weights for fit in self.fits)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about impacts measured with these fits."""
        first, *others = self.fits
        notes = first.report.notes
        if others or not first.fitted:
            return notes
        return (
            *notes,
            "impacts of removals by projection are measured on the data that the projections were fitted on, as a "
            "single batch could not be cut: they may be far too low. Pass several batches",
        )


def halves(batches: Sequence[Batch]) -> list[list[Batch]]:
    """The batches of each fit: the batches that the other fit is measured on. With one batch, all of it."""
    if len(batches) < 2:
        return [list(batches)]
    return [[batch for number, batch in enumerate(batches) if number % 2 != judged] for judged in (0, 1)]


def cut_in_two(model: nn.Module, batches: Sequence[Batch]) -> Sequence[Batch]:
    """Cut a single batch in two, if its samples run separately; several batches are returned unchanged."""
    if len(batches) != 1 or batches[0].num_samples < 2:
        return batches
    kept, held = hold_out_of(model, batches, 0.5)
    return (*kept, *held)


def fit_crosswise(
    model: nn.Module,
    sets: Iterable[Sequence[Edit]],
    batches: Sequence[Batch],
    *,
    memory_bytes: int,
) -> CrossFit:
    """Fit the projections of sets of edits, each set applied alone, on either half of the batches.

    See :func:`fold_alone` for the arguments and errors.
    """
    known = list(sets)
    fits = [fold_alone(model, known, some, memory_bytes=memory_bytes) for some in halves(batches)]
    return CrossFit(tuple(fits))


class Refits:
    """Projections of sets of removals: fitted again for each set, until the memory for their weights is used up.

    Args:
        scene: the batches, and the fits of single removals.
        alone: the edits of these removals.
    """

    def __init__(self, scene: ScoringContext, alone: Collection[Sequence[Edit]]) -> None:
        self.scene = scene
        self.alone = frozenset(map(tuple, alone))
        self.known: dict[tuple[Edit, ...], Sequence[Folded]] = {}
        self.num_bytes = 0

    def of(self, edits: Sequence[Edit]) -> Sequence[Folded]:
        """Folded weights of a set, by several fits as in :attr:`CrossFit.weights`."""
        key = tuple(edits)
        if not folds_of(edits) or key in self.alone:
            return self.scene.folded
        if key not in self.known and self.num_bytes < _MOST_BYTES:
            found = self.known[key] = [self.scene.fit(edits, some) for some in halves(self.scene.batches)]
            tensors = [tensor for fit in found for weights in fit.values() for tensor in weights.values()]
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return self.known.get(key, self.scene.folded)


def missed_crosswise(
    model: nn.Module,
    edits: Sequence[Edit],
    batches: Sequence[Batch],
    crossed: CrossFit,
) -> list[tuple[float, float]] | None:
    """Squared error and squared size of projections on each batch, by the fit that held this batch out.

    See :func:`missed_by`, also for the arguments. None if a projection was not fitted.
    """
    found: list[tuple[float, float]] = [(0.0, 0.0)] * len(batches)
    for place, fit in enumerate(crossed.fits):
        numbers = range(place, len(batches), len(crossed.fits))
        pairs = missed_by(model, edits, [batches[number] for number in numbers], fit)
        if pairs is None:
            return None
        for number, pair in zip(numbers, pairs, strict=True):
            found[number] = pair
    return found
