"""Example inputs: the user's as arguments of a forward, or inferred from the model's layers."""

# pyright: reportUnusedImport=false
from layerprune.inputs.arguments import ArgumentReader
from layerprune.inputs.example_inputs import Inputs, Sampler, as_inputs, describe, infer_inputs, why_mismatched
from layerprune.inputs.signature import positional_names
