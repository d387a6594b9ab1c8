"""Removals: substitutions in the layer graph that take groups out.

Candidates are found on the layer graph, lowered to edits, and combined.
"""

# pyright: reportUnusedImport=false
from layerprune.removals.cache_slots import CacheSlots
from layerprune.removals.candidates import GRANULARITIES, Candidate, find_candidates, key_of, why_not
from layerprune.removals.combine import join_cuts, side_by_side
from layerprune.removals.container_elements import without_argument
from layerprune.removals.container_shortening import ContainerShortener
from layerprune.removals.idle_merges import difference, is_concat
from layerprune.removals.lowering import Lowering, lower_removal
from layerprune.removals.projection_candidates import find_projections
from layerprune.removals.rewiring import also_used
