"""Fits projections on one half of the batches and judges them on the other half."""

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
    """Fits of the same projections, of which each batch is judged by the one that has not seen it.

    Attributes:
        fits: batch number ``n`` is judged by ``fits[n % len(fits)]``; a single fit has seen all batches.
    """

    fits: Sequence[Projections] = (Projections(),)

    @property
    def weights(self) -> tuple[Folded, ...]:
        """What each fit makes of the transforms that take the projections in."""
        return tuple(fit.weights for fit in self.fits)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about impacts that were measured with them."""
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
    """What each fit gets: the batches that the others judge. All of them where there is one batch only."""
    if len(batches) < 2:
        return [list(batches)]
    return [[batch for number, batch in enumerate(batches) if number % 2 != judged] for judged in (0, 1)]


def cut_in_two(model: nn.Module, batches: Sequence[Batch], *, written: Collection[str] = ()) -> Sequence[Batch]:
    """A single batch as two halves, where its samples can be told apart and run by themselves; several as they are."""
    if len(batches) != 1 or batches[0].num_samples < 2:
        return batches
    kept, held = hold_out_of(model, batches, 0.5, written=written)
    return (*kept, *held)


def fit_crosswise(
    model: nn.Module,
    sets: Iterable[Sequence[Edit]],
    batches: Sequence[Batch],
    *,
    memory_bytes: int,
    written: Collection[str] = (),
) -> CrossFit:
    """Fit the projections of several sets of edits, each as if it was made alone, on either half of the batches.

    Args:
        model: the original; it stays as it is.
        sets: the edits of each; those without projections are passed over.
        batches: calibration data.
        memory_bytes: what one fit may take.
        written: names of parameters that the forward writes into.

    Raises:
        CalibrationError: a batch does not run.
    """
    known = list(sets)
    fits = [fold_alone(model, known, some, memory_bytes=memory_bytes, written=written) for some in halves(batches)]
    return CrossFit(tuple(fits))


class Refits:
    """Projections of whole sets: in company they are fitted anew, while there is room.

    Args:
        scene: the batches, and the fits of removals alone.
        alone: the edits of these.
    """

    def __init__(self, scene: ScoringContext, alone: Collection[Sequence[Edit]]) -> None:
        self.scene = scene
        self.alone = frozenset(map(tuple, alone))
        self.known: dict[tuple[Edit, ...], Sequence[Folded]] = {}
        self.num_bytes = 0

    def of(self, edits: Sequence[Edit]) -> Sequence[Folded]:
        """What projections make of the transforms of a set, by several fits as :attr:`CrossFit.weights` has them."""
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
    *,
    written: Collection[str] = (),
) -> list[tuple[float, float]] | None:
    """How far projections are from what they stand for on each batch, by the fit that has not seen it.

    As :func:`missed_by`, also for the arguments; None where one was not fitted.
    """
    found: list[tuple[float, float]] = [(0.0, 0.0)] * len(batches)
    for place, fit in enumerate(crossed.fits):
        numbers = range(place, len(batches), len(crossed.fits))
        pairs = missed_by(model, edits, [batches[number] for number in numbers], fit, written=written)
        if pairs is None:
            return None
        for number, pair in zip(numbers, pairs, strict=True):
            found[number] = pair
    return found
