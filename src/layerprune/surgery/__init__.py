"""Edits carried out on a module tree, all or nothing, and undone."""

# pyright: reportUnusedImport=false
from layerprune.surgery.apply import applied, check_numbers, operate
from layerprune.surgery.fold_weights import Folded, Projection, folded
from layerprune.surgery.saving_guard import RefusedSaving, cover, rebuilders
