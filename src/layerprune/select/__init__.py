"""Which removals to make within the user's budgets."""

from layerprune.select.budgets import Budgets, check_share
from layerprune.select.conflicts import bans_of
from layerprune.select.constraints import Limit, amount
from layerprune.select.frontier import frontier
from layerprune.select.milp import Programme
from layerprune.select.named_groups import Named, alone, removals_for
from layerprune.select.problem import SLACK, CapUse, Effort, Problem, Resource, Selection
from layerprune.select.resources import Meter
from layerprune.select.search import Search
from layerprune.select.strategies.choose import BY_SUMS, select
from layerprune.select.strategies.exact import MORE_SLACK

__all__ = [
    "BY_SUMS",
    "MORE_SLACK",
    "SLACK",
    "Budgets",
    "CapUse",
    "Effort",
    "Limit",
    "Meter",
    "Named",
    "Problem",
    "Programme",
    "Resource",
    "Search",
    "Selection",
    "alone",
    "amount",
    "bans_of",
    "check_share",
    "frontier",
    "removals_for",
    "select",
]
