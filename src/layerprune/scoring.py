"""Scores the removals, by default or on calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from layerprune.capture import (
    Batch,
    about_calibration,
    finite_ones,
    first_not_finite,
    real_sandbox,
    require_finite,
    spoilt_inputs,
)
from layerprune.edits import Edit
from layerprune.environment import progress_bar
from layerprune.errors import CalibrationError
from layerprune.fitting import fold_alone
from layerprune.impact import (
    Criterion,
    CrossFit,
    ImpactScores,
    ScoringContext,
    cut_in_two,
    fit_crosswise,
    missed_crosswise,
    score,
)
from layerprune.inputs import Inputs
from layerprune.modules import names_with_nan, parameters
from layerprune.proof import Removal
from layerprune.repair import MEMORY_BYTES
from layerprune.surgery import Folded


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """The removals with their impacts, and the data of the measurement.

    Attributes:
        removals: the removals to choose from, with impacts.
        evidence: the measurements; None where nothing could be measured.
        scene: model, removals and data of the measurement; None where nothing could be measured.
        has_data: whether calibration data were used.
        unit: the unit of the impacts.
        notes: remarks for the user.
        unfitted: removals that may not be chosen: there are no data to fit their projections on.
    """

    removals: Sequence[Removal]
    evidence: ImpactScores | None
    scene: ScoringContext | None
    has_data: bool
    unit: str
    notes: tuple[str, ...] = ()
    unfitted: tuple[Removal, ...] = ()


@dataclass(frozen=True, eq=False)
class _Measured:
    """Measurements, with their scene and projections."""

    scene: ScoringContext
    crossed: CrossFit
    evidence: ImpactScores
    notes: tuple[str, ...] = ()


def score_removals(
    scene: ScoringContext, inputs: Inputs, batches: Sequence[Batch] | None, criterion: Criterion, progress: bool | None
) -> Scored:
    """Measure the impacts of removals; projections are fitted to the data first.

    Args:
        scene: the model and the removals; its batches are not used.
        inputs: the example inputs, used where there are no calibration data.
        batches: calibration data; None if there are none.
        criterion: the criterion to measure by.
        progress: whether to show a bar; None: only if standard error is a terminal.

    Raises:
        CalibrationError: a batch does not run.
        NotFiniteError: the model makes NaN or infinite values of a batch.
    """
    notes = [f"weights hold NaN in {name}: impacts mean nothing" for name in names_with_nan(scene.model)[:3]]
    if inputs.inferred and batches is None:
        made_up = "impacts are measured on made-up values only; pass example_inputs="
        notes.append(f"inputs were {inputs.origin}: {made_up}")
    if batches is None:
        notes += inputs.notes
    has_values = not any(t.is_meta for t in chain(parameters(scene.model), inputs.tensors()))
    fits = batches is not None and has_values
    usable = [r for r in scene.removals if fits or not r.needs_calibration]
    unfitted = tuple(r for r in scene.removals if not (fits or not r.needs_calibration))
    if not has_values:
        unit = "not measured: the model or its inputs are on the meta device and have no values"
        return Scored(
            removals=usable,
            evidence=None,
            scene=None,
            has_data=batches is not None,
            unit=unit,
            notes=tuple(notes),
            unfitted=unfitted,
        )
    used = (Batch(None, inputs),) if batches is None else tuple(batches)
    found = _measured(replace(scene, removals=usable, batches=used), criterion, progress)
    scene, evidence = found.scene, found.evidence
    if batches is None and (np.isnan(evidence.impacts).any() or spoilt_inputs(used)):
        notes += _about_example(scene)
    notes += [*found.notes, *about_calibration(tuple(batches or ())), *found.crossed.notes, *evidence.notes]
    scored = [replace(r, impact=float(i)) for r, i in zip(usable, evidence.impacts, strict=True)]
    unit = f"{evidence.unit}, on the {'example inputs' if batches is None else 'calibration data'}"
    return Scored(
        removals=scored,
        evidence=evidence,
        scene=scene,
        has_data=batches is not None,
        unit=unit,
        notes=tuple(notes),
        unfitted=unfitted,
    )


def _measured(scene: ScoringContext, criterion: Criterion, progress: bool | None) -> _Measured:
    """Fit projections and measure; batches on which the original's output is not finite are left out, with a note.

    Raises:
        NotFiniteError: a batch itself is not finite, no batch is left, or the user's loss is measured.
    """
    model = scene.model
    is_data = scene.batches[0].item is not None
    if is_data and scene.loss is None:  # a user's loss may skip values that are not finite
        require_finite(model, scene.batches, spoilt_inputs(scene.batches))
    try:
        found = _once(scene, criterion, progress)
        change = found.evidence.change
        if not is_data or len(change) != len(scene.batches) or not np.isnan(change).any():
            return found
        kept, notes = finite_ones(model, scene.batches)
    except CalibrationError:
        if scene.loss is not None:
            require_finite(model, scene.batches, range(len(scene.batches)))
        kept, notes = finite_ones(model, scene.batches)
        if not notes:
            raise
        found = None
    if found is None or notes:
        again = _once(replace(scene, batches=kept), criterion, progress)
        return replace(again, notes=notes)
    return found


def _once(scene: ScoringContext, criterion: Criterion, progress: bool | None) -> _Measured:
    scene, crossed = _with_projections(scene)
    with progress_bar("measuring impacts", progress) as told:
        return _Measured(scene, crossed, score(replace(scene, progress=told), criterion))


def _about_example(scene: ScoringContext) -> list[str]:
    """Note values that are not finite in the output on the example inputs."""
    found = first_not_finite(real_sandbox(scene.model), scene.batches[0])
    return [f"the output on the example inputs is not finite, and impacts mean nothing: {found}"] if found else []


def _with_projections(scene: ScoringContext) -> tuple[ScoringContext, CrossFit]:
    """A scene with the projections of its removals, each fitted alone, with cross-fitting."""
    crossed, model = CrossFit(), scene.model
    sets = [removal.edits for removal in scene.removals if removal.needs_calibration]
    batches = cut_in_two(model, scene.batches) if sets else scene.batches
    if sets:
        crossed = fit_crosswise(model, sets, batches, memory_bytes=MEMORY_BYTES)

    def fit(edits: Sequence[Edit], some: Sequence[Batch]) -> Folded:
        return fold_alone(model, [edits], some, memory_bytes=MEMORY_BYTES).weights

    def missed(removal: Removal) -> list[tuple[float, float]] | None:
        return missed_crosswise(model, removal.edits, batches, crossed)

    return replace(scene, batches=batches, folded=crossed.weights, fit=fit, missed=missed), crossed


def about_unfitted(usable: Sequence[Removal], unfitted: Sequence[Removal]) -> list[str]:
    """Note the groups that could leave if there were data."""
    safe = {name for removal in usable for name in removal.groups}
    names = dict.fromkeys(name for removal in unfitted for name in removal.groups if name not in safe)
    if not names:
        return []
    return [
        f"{len(names)} groups leave by projections only, which are fitted on calibration data: no plan takes them out "
        "without; pass calibration="
    ]
