"""Fidelity: how near a pruned model is to the original, on data."""

from layerprune.fidelity.compare import compare
from layerprune.fidelity.record import Estimate, Fidelity

__all__ = ["Estimate", "Fidelity", "compare"]
