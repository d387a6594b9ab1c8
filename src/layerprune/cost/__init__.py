"""Costs of a model (parameters, MACs, bytes, latency), and savings by removals."""

# pyright: reportUnusedImport=false
from layerprune.cost.latency import Latency, compare_latency
from layerprune.cost.layer_costs import tally_layers, time_by_layer
from layerprune.cost.macs import count_macs
from layerprune.cost.memory import activation_peak_bytes, buffer_bytes, param_bytes
from layerprune.cost.report import Saving, measure, saved
from layerprune.cost.savings import Savings, bundles, layers_taken, params_gone, params_taken
from layerprune.tables import bytes_text
