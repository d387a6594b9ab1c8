"""The pruning plan: a plain record of removals, saved as JSON, applied to any copy of the model."""

# pyright: reportUnusedImport=false
from layerprune.plan.plan import (
    FrontierPoint,
    PlanGiven,
    PlannedFigure,
    PlannedRemoval,
    PruningPlan,
    json_safe,
    placed_plans,
    plan_of,
    plans_of,
)
