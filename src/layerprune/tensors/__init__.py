"""Tensors as plain values: found in containers, compared, traced to a line of code; no modules, graphs or pruning."""

# pyright: reportUnusedImport=false
from layerprune.tensors.call_site import caller, custom_function, user_line
from layerprune.tensors.concrete_ints import KeepsIntegers, holds_values
from layerprune.tensors.containers import attributes_of, map_arrays, map_tensors, tensors_by_place, tensors_in
from layerprune.tensors.identity import is_wrapped, same_bits, same_tensor
from layerprune.tensors.op_claims import OpCall, check_claims
from layerprune.tensors.op_registry import register_op
from layerprune.tensors.op_traits import (
    KINDS,
    OpTraits,
    has_claims,
    is_custom,
    is_merge_label,
    merge_label,
    merge_of_label,
    op_name,
    raw_name,
    registered_ops,
    traits_of,
)
from layerprune.tensors.operands import flat_tensors, form_of, written_tensors
from layerprune.tensors.output_tree import OutputTree, StandInLeaf, Structure, is_argument, pick
