"""Scoring: the removals with their impacts, and what these were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from layerprune.calibration import Batch, about_calibration
from layerprune.edits import Edit
from layerprune.impact.criteria import Criterion, score
from layerprune.impact.evidence import Evidence, Scene
from layerprune.inputs import Inputs
from layerprune.modules import names_with_nan
from layerprune.projection import Folded
from layerprune.proof import Removal
from layerprune.repair.closed_form import MEMORY_BYTES
from layerprune.repair.fitter import Projections
from layerprune.repair.folding import fold_alone, missed_by
from layerprune.report.progress import shown


@dataclass(frozen=True, eq=False)
class Scored:
    """The removals with their impacts, and what these were measured on.

    Attributes:
        removals: with their impacts; those that may be chosen.
        evidence: what was measured; None where nothing could be.
        scene: what it was measured on; None where nothing could be.
        has_data: whether that were calibration data.
        unit: what the impacts are.
        notes: what the user should know about them.
        unfitted: removals that may not be chosen, as there are no data to fit their projections on.
    """

    removals: Sequence[Removal]
    evidence: Evidence | None
    scene: Scene | None
    has_data: bool
    unit: str
    notes: tuple[str, ...] = ()
    unfitted: tuple[Removal, ...] = ()


def score_removals(
    scene: Scene, inputs: Inputs, batches: Sequence[Batch] | None, criterion: Criterion, progress: bool | None
) -> Scored:
    """Measure the impacts of removals, those of projections as they are fitted to the data.

    Args:
        scene: the model and the removals; its batches are not looked at.
        inputs: the example inputs, which stand in where there are no calibration data.
        batches: calibration data; None if there are none.
        criterion: what measures.
        progress: whether to show a bar; None for where standard error is a terminal.
    """
    notes = [f"weights hold NaN in {name}: impacts mean nothing" for name in names_with_nan(scene.model)[:3]]
    if inputs.inferred and batches is None:
        made_up = "impacts are measured on made-up values only; pass example_inputs="
        notes.append(f"inputs were {inputs.origin}: {made_up}")
    has_values = not any(t.is_meta for t in chain(scene.model.parameters(), inputs.tensors()))
    fits = batches is not None and has_values
    usable = [r for r in scene.removals if fits or not r.needs_calibration]
    unfitted = tuple(r for r in scene.removals if not (fits or not r.needs_calibration))
    notes += _about_unfitted(usable, unfitted)
    if not has_values:
        unit = "not measured: the model or its inputs are on the meta device and have no values"
        return Scored(usable, None, None, batches is not None, unit, tuple(notes), unfitted)
    used = (Batch(None, inputs),) if batches is None else tuple(batches)
    scene, fitted = _with_projections(replace(scene, removals=usable, batches=used))
    with shown("measuring impacts", progress) as told:
        evidence = score(replace(scene, progress=told), criterion)
    notes += [*about_calibration(tuple(batches or ())), *fitted.report.notes, *evidence.notes]
    scored = [replace(r, impact=float(i)) for r, i in zip(usable, evidence.impacts, strict=True)]
    unit = f"{evidence.unit}, on the {'example inputs' if batches is None else 'calibration data'}"
    return Scored(scored, evidence, scene, batches is not None, unit, tuple(notes), unfitted)


def _with_projections(scene: Scene) -> tuple[Scene, Projections]:
    """A scene that knows the projections of its removals, each fitted as if it was made alone."""
    fitted = Projections()
    written = scene.graph.written_params
    sets = [removal.edits for removal in scene.removals if removal.needs_calibration]
    if sets:
        fitted = fold_alone(scene.model, sets, scene.batches, memory_bytes=MEMORY_BYTES, written=written)

    def fit(edits: Sequence[Edit]) -> Folded:
        one = fold_alone(scene.model, [edits], scene.batches, memory_bytes=MEMORY_BYTES, written=written)
        return one.weights

    def missed(removal: Removal) -> list[tuple[float, float]] | None:
        return missed_by(scene.model, removal.edits, scene.batches, fitted, written=written)

    return replace(scene, folded=fitted.weights, fit=fit, missed=missed), fitted


def _about_unfitted(usable: Sequence[Removal], unfitted: Sequence[Removal]) -> list[str]:
    """Say what could go if there were data."""
    safe = {name for removal in usable for name in removal.groups}
    names = dict.fromkeys(name for removal in unfitted for name in removal.groups if name not in safe)
    if not names:
        return []
    return [
        f"{len(names)} groups leave by projections only, which are fitted on calibration data: no plan takes them out "
        "without; pass calibration="
    ]
