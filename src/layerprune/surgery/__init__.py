"""Edits carried out on a module tree: all or nothing, and undoable."""

from layerprune.surgery.apply import applied, check_numbers, operate
from layerprune.surgery.fold_weights import Folded, Projection, folded
from layerprune.surgery.saving_guard import RefusedSaving, cover, rebuilders

__all__ = [
    "Folded",
    "Projection",
    "RefusedSaving",
    "applied",
    "check_numbers",
    "cover",
    "folded",
    "operate",
    "rebuilders",
]
