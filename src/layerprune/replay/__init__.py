"""Reuses stored outputs of module calls whose inputs did not change."""

# pyright: reportUnusedImport=false
from layerprune.replay.reuse import CannotReuse, OutputReuse, ReusePolicy
