"""The layer graph: layers, values and module calls of one forward, and the groups of layers. Made by ``capture``."""

# pyright: reportUnusedImport=false
from layerprune.graph.correspondence import counterparts
from layerprune.graph.graph_data import Frame, Layer, Read, Value
from layerprune.graph.groups import Group, GroupVerdict, LayerInfo, form_groups
from layerprune.graph.layer_graph import LayerGraph
from layerprune.graph.liveness import Cut
from layerprune.graph.names import numbers_in, without_numbers
from layerprune.graph.op_kinds import kind_of_function, kind_of_module
from layerprune.graph.refusal_guide import REFUSAL_GUIDE, Guidance
from layerprune.graph.refusals import Refusal, RefusalCode
from layerprune.graph.value_locations import ValueLocations, calls_of
