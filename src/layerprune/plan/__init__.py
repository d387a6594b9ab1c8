"""The pruning plan: a plain record of what goes, which is saved as JSON and carried out on another copy."""

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
