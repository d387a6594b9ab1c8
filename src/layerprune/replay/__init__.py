"""Module calls whose inputs did not change are not run again: their outputs are handed on."""

# pyright: reportUnusedImport=false
from layerprune.replay.reuse import CannotReuse, OutputReuse, ReusePolicy
