"""Fits the projections of a plan front to back and multiplies them into the layers behind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from layerprune.capture import Batch, Sandbox, real_sandbox
from layerprune.edits import Edit, Fold, folds_of
from layerprune.errors import CalibrationError
from layerprune.fitting.input_probe import InputProbe, named
from layerprune.fitting.layer_matrix import exact
from layerprune.fitting.projection_fit import ProjectionFitter, Projections, TooLarge
from layerprune.modules import write
from layerprune.surgery import applied


def fold_into(
    original: nn.Module,
    pruned: nn.Module,
    batches: Sequence[Batch],
    edits: Sequence[Edit],
    *,
    memory_bytes: int,
    written: Collection[str] = (),
) -> Projections:
    """Fit the projections of a plan, and write the weights that take them in into the pruned model.

    Front to back: each is fitted to the original's tensor, from what the pruned model makes of the same batch by then.
    The strength of the ridge is chosen on the last quarter of the data. Both models run in eval mode, on copies.

    Args:
        original: the model before pruning; it stays as it is.
        pruned: what surgery has left of it.
        batches: calibration data.
        edits: what was done to it.
        memory_bytes: what one fit may take.
        written: names of parameters that the forward writes into.

    Raises:
        CalibrationError: a batch does not run, a fit takes more memory than allowed, or the weights that come out are
            too large for their type.
    """
    if not folds_of(edits):
        return Projections()
    before, after = real_sandbox(original, written=written), real_sandbox(pruned, written=written)
    side = InputProbe.of(after, edits)
    found = _front_to_back(before, side, edits, batches, memory_bytes)
    values = {name: new for edit, held in found.weights.items() for name, new in named(edit, held).items()}
    _check_range(values)
    write(pruned, {side.name_of_tensor(name): new for name, new in values.items()})
    return found


def _check_range(values: Mapping[str, Tensor]) -> None:
    for name, new in values.items():
        if not new.isfinite().all():
            raise CalibrationError(
                f"'{name}' cannot take a projection in: its new entries are beyond {new.dtype}, which ends at "
                f"{torch.finfo(new.dtype).max:.3g}. Prune a float32 copy, or pass projections=False"
            )


def fold_alone(
    model: nn.Module,
    sets: Iterable[Sequence[Edit]],
    batches: Sequence[Batch],
    *,
    memory_bytes: int,
    written: Collection[str] = (),
) -> Projections:
    """Fit the projections of several sets of edits, each as if it was made alone; the model stays as it is.

    Args:
        model: the original.
        sets: the edits of each; those without projections are passed over.
        batches: calibration data.
        memory_bytes: what one fit may take; a projection that takes more is left out, and a note says so.
        written: names of parameters that the forward writes into.

    Raises:
        CalibrationError: a batch does not run.
    """
    before, after = real_sandbox(model, written=written), real_sandbox(model, written=written)
    found: list[Projections] = []
    for edits in sets:
        if not folds_of(edits):
            continue
        try:
            with applied(after.model, edits):
                found.append(_front_to_back(before, InputProbe.of(after, edits), edits, batches, memory_bytes))
        except TooLarge as error:
            found.append(Projections(notes=(str(error),)))
    return _together(found)


def _front_to_back(
    original: Sandbox, side: InputProbe, edits: Sequence[Edit], batches: Sequence[Batch], memory_bytes: int
) -> Projections:
    """Fit all projections of a pruned shadow, and put each into it before the next."""
    found: list[Projections] = []
    for some in _stages(side, batches[0], folds_of(edits)):
        found.append(ProjectionFitter(original, side, some, memory_bytes).fit(batches))
        for edit, values in found[-1].weights.items():
            side.put(edit, values)
    return _together(found)


def missed_by(
    model: nn.Module,
    edits: Sequence[Edit],
    batches: Sequence[Batch],
    found: Projections,
    *,
    written: Collection[str] = (),
) -> list[tuple[float, float]] | None:
    """How far projections are from what they stand for, on each batch: the squared distance, and the squared size.

    Args:
        model: the original.
        edits: what a removal does.
        batches: calibration data.
        found: what :func:`fold_alone` has fitted for it.
        written: names of parameters that the forward writes into.

    Returns:
        A pair of numbers for each batch; None where a projection of the removal was not fitted.
    """
    folds = folds_of(edits)
    if not folds or not all(edit in found.matrices for edit in folds):
        return None
    before, after = real_sandbox(model, written=written), real_sandbox(model, written=written)
    pairs = [(0.0, 0.0)] * len(batches)
    with applied(after.model, edits, found.weights):
        side = InputProbe.of(after, edits)
        for some in _by_value(folds):
            fitter = ProjectionFitter(before, side, some, 0)
            for number, batch in enumerate(batches):
                read, wanted = (rows.to(exact(rows)) for rows in fitter.rows(batch))
                error = wanted - found.matrices[some[0]].of(read)
                change, size = pairs[number]
                pairs[number] = change + float(error.square().sum()), size + float(wanted.square().sum())
    return pairs


def _together(found: Sequence[Projections]) -> Projections:
    return Projections(
        tuple(one for some in found for one in some.fitted),
        {edit: matrix for some in found for edit, matrix in some.matrices.items()},
        {edit: weights for some in found for edit, weights in some.weights.items()},
        tuple(dict.fromkeys(note for some in found for note in some.notes)),
    )


def _by_value(folds: Sequence[Fold]) -> list[list[Fold]]:
    """Transforms that read the same tensor share its projection."""
    found: dict[tuple[str, str, int, tuple[int, ...]], list[Fold]] = {}
    for edit in folds:
        found.setdefault((edit.value, edit.source, edit.num_in, edit.strides), []).append(edit)
    return list(found.values())


def _stages(side: InputProbe, batch: Batch, folds: Sequence[Fold]) -> list[list[Fold]]:
    """The projections in the order in which the pruned model comes to them."""
    order = list(side.see(batch, folds))
    return sorted(_by_value(folds), key=lambda some: order.index(some[0]))
