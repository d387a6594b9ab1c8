"""The pruning plan: a plain record of removals, saved as JSON, applied to any copy of the model."""

# pyright: reportUnusedImport=false
from layerprune.plan.plan import (
    PlanGiven,
    PruningPlan,
    json_safe,
    merged,
    placed_plans,
    plan_of,
    plans_of,
    plans_since,
)
from layerprune.plan.records import FrontierPoint, PlanHeader, PlannedFigure, PlannedRemoval
