"""What a model costs (parameters, MACs, bytes, latency), and what removals save of it."""

from layerprune.cost.latency import Latency, compare_latency
from layerprune.cost.layer_costs import tally_layers, time_by_layer
from layerprune.cost.macs import count_macs
from layerprune.cost.memory import activation_peak_bytes, buffer_bytes, param_bytes
from layerprune.cost.report import Saving, bytes_text, measure, saved
from layerprune.cost.savings import Taken, bundles, layers_taken, params_gone, params_taken

__all__ = [
    "Latency",
    "Saving",
    "Taken",
    "activation_peak_bytes",
    "buffer_bytes",
    "bundles",
    "bytes_text",
    "compare_latency",
    "count_macs",
    "layers_taken",
    "measure",
    "param_bytes",
    "params_gone",
    "params_taken",
    "saved",
    "tally_layers",
    "time_by_layer",
]
