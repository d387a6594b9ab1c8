"""Module calls whose inputs did not change are not run again: their outputs are handed on."""

from layerprune.replay.policy import Ledger
from layerprune.replay.prefix import handing, prefix, steady
from layerprune.replay.reuse import Handover, Unsure

__all__ = [
    "Handover",
    "Ledger",
    "Unsure",
    "handing",
    "prefix",
    "steady",
]
