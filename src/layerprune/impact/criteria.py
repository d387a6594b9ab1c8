"""The criteria that score removals, registered by name."""

from __future__ import annotations

from collections.abc import Callable

from layerprune.errors import CalibrationError, LayerPruneError, UnknownNameError, ended_by
from layerprune.impact.ablation import score_ablation
from layerprune.impact.estimators.influence import score_influence
from layerprune.impact.estimators.loss import score_loss
from layerprune.impact.estimators.magnitude import score_magnitude
from layerprune.impact.estimators.output_change import score_output_change
from layerprune.impact.scores import ImpactScores, ScoringContext
from layerprune.impact.shortlist import score_shortlist

Criterion = Callable[[ScoringContext], ImpactScores]

_CRITERIA: dict[str, Criterion] = {
    "shortlist": score_shortlist,
    "ablation": score_ablation,
    "output_change": score_output_change,
    "loss": score_loss,
    "influence": score_influence,
    "magnitude": score_magnitude,
}


def register_criterion(name: str, criterion: Criterion) -> None:
    """Register a criterion of your own, for ``UniversalLayerPruner(criterion=…)``.

    Args:
        name: name of the criterion; it replaces a criterion of the same name.
        criterion: takes a :class:`ScoringContext`, returns :class:`ImpactScores` with a column for each removal.
    """
    _CRITERIA[name] = criterion


def criterion_of(name: str, *, has_data: bool) -> Criterion:
    """The criterion of this name; ``auto`` is ``shortlist`` with calibration data and ``influence`` without."""
    chosen = ("shortlist" if has_data else "influence") if name == "auto" else name
    if not isinstance(chosen, str) or chosen not in _CRITERIA:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnknownNameError(f"there is no criterion {name!r:.60}; there are auto, {', '.join(_CRITERIA)}")
    return _CRITERIA[chosen]


def score(scene: ScoringContext, criterion: Criterion) -> ImpactScores:
    """Score removals with a criterion.

    Raises:
        CalibrationError: the criterion raised, or returned another number of columns than there are removals.
    """
    try:
        evidence = criterion(scene)
    except LayerPruneError:
        raise
    except Exception as error:  # the user's own criterion
        raise CalibrationError(ended_by("the criterion raised, and impacts could not be measured", error)) from error
    if evidence.impacts.shape != (len(scene.removals),):
        raise CalibrationError(
            f"the criterion found something for {evidence.change.shape} batches and removals, where there are "
            f"{len(scene.batches)} batches and {len(scene.removals)} removals: give a column for each removal"
        )
    return evidence
