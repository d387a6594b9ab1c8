"""Fits the projections of a plan from front to back and folds them into the transforms that read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
) -> Projections:
    """Fit the projections of a plan, and write the folded weights into the pruned model.

    From front to back, each projection is fitted to the original's tensor, with the earlier projections already in
    the pruned model. The last quarter of the data chooses the strength of the ridge. Both models run as copies in
    eval mode.

    Args:
        original: the model before pruning; it stays unchanged.
        pruned: the model after surgery.
        batches: calibration data.
        edits: the edits of the plan.
        memory_bytes: memory limit of one fit.

    Raises:
        CalibrationError: a batch does not run, a fit exceeds the memory limit, or a folded weight exceeds its dtype.
    """
    if not folds_of(edits):
        return Projections()
    before, after = real_sandbox(original), real_sandbox(pruned)
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
) -> Projections:
    """Fit the projections of sets of edits, each set applied alone to a copy of the model.

    Args:
        model: the original; it stays unchanged.
        sets: sets of edits; sets without projections are skipped.
        batches: calibration data.
        memory_bytes: memory limit of one fit; a projection that needs more gets a note instead.

    Raises:
        CalibrationError: a batch does not run.
    """
    before, after = real_sandbox(model), real_sandbox(model)
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
    """Fit all projections on a pruned sandbox, and fold each into it before the next fit."""
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
) -> list[tuple[float, float]] | None:
    """Squared error and squared size of a removal's projections on each batch; None if one was not fitted.

    ``found`` is the result of :func:`fold_alone` for ``edits``; see there for the other arguments.
    """
    folds = folds_of(edits)
    if not folds or not all(edit in found.matrices for edit in folds):
        return None
    before, after = real_sandbox(model), real_sandbox(model)
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
    """Folds grouped by projection: transforms that read the same tensor share it."""
    found: dict[tuple[str, str, int, tuple[int, ...]], list[Fold]] = {}
    for edit in folds:
        found.setdefault((edit.value, edit.source, edit.num_in, edit.strides), []).append(edit)
    return list(found.values())


def _stages(side: InputProbe, batch: Batch, folds: Sequence[Fold]) -> list[list[Fold]]:
    """The projections in order of execution in the pruned model."""
    order = list(side.see(batch, folds))
    return sorted(_by_value(folds), key=lambda some: order.index(some[0]))
