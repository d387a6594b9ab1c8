"""Selects removals within the user's budgets."""

# pyright: reportUnusedImport=false
from layerprune.select.budgets import Budgets, check_share
from layerprune.select.conflicts import exclusions_of
from layerprune.select.constraints import Limit, Pieces, amount
from layerprune.select.frontier import Point, frontier
from layerprune.select.milp import Milp
from layerprune.select.named_groups import Named, alone, removals_for
from layerprune.select.problem import SLACK, CapUse, Effort, Problem, Resource, Selection
from layerprune.select.resources import Resources
from layerprune.select.search import Search
from layerprune.select.strategies.choose import BY_SUMS, select
from layerprune.select.strategies.exact import MORE_SLACK
