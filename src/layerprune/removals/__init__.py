"""Removals: each way in which tensors of the layer graph can be replaced so that a group of layers dies.

Candidates are found on the graph, lowered to edits, and combined.
"""

from layerprune.removals.cache_slots import CacheKeeper
from layerprune.removals.candidates import GRANULARITIES, Candidate, find_candidates, key_of, why_not
from layerprune.removals.combine import join_cuts, side_by_side
from layerprune.removals.container_elements import without_argument
from layerprune.removals.container_shortening import Shortener
from layerprune.removals.idle_merges import difference, merge_of
from layerprune.removals.lowering import Realisation, realise
from layerprune.removals.projection_candidates import find_projections
from layerprune.removals.rewiring import CannotRealise, also_used

__all__ = [
    "GRANULARITIES",
    "CacheKeeper",
    "Candidate",
    "CannotRealise",
    "Realisation",
    "Shortener",
    "also_used",
    "difference",
    "find_candidates",
    "find_projections",
    "join_cuts",
    "key_of",
    "merge_of",
    "realise",
    "side_by_side",
    "why_not",
    "without_argument",
]
