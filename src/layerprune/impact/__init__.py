"""Impacts of removals: measured by ablation, or estimated by another criterion."""

# pyright: reportUnusedImport=false
from layerprune.impact.ablation import ablate
from layerprune.impact.criteria import Criterion, criterion_of, register_criterion, score
from layerprune.impact.cross_fit import CrossFit, Refits, cut_in_two, fit_crosswise, missed_crosswise
from layerprune.impact.estimators.output_change import score_output_change
from layerprune.impact.intervals import impact_intervals
from layerprune.impact.racing import (
    FINAL,
    Rule,
    all_of_them,
    counted,
    first_only,
    going_on_of,
    halving,
    handicapped,
    winner,
)
from layerprune.impact.scores import ImpactScores, ScoringContext
from layerprune.impact.subbatches import ends
