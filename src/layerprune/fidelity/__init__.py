"""Compares the outputs of a model with those of another model, on data."""

# pyright: reportUnusedImport=false
from layerprune.fidelity.compare import compare
from layerprune.fidelity.divergence import (
    Divergence,
    Kind,
    class_dim,
    divergence_named,
    divergence_of,
    masked,
    norm,
    square,
)
from layerprune.fidelity.held_out import HeldOut, HeldOutVerdict, held_by, hold_out, hold_out_of
from layerprune.fidelity.report import Estimate, Fidelity
