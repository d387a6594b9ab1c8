"""Candidates: what the layer graph alone shows that would take a group out, on graphs of a few layers."""

import pytest
import torch
from torch import nn

from layerprune.graph import Cut, form_groups
from layerprune.removals import find_candidates, why_not
from models.hand_built import HandBuiltGraph


def found_on(graph, modules=None, **options):
    """Kind, name and groups of each candidate that comes first among its alternatives, stem and head included."""
    found = find_candidates(graph, form_groups(graph), modules or {}, **{"protect_io": False, **options}).found
    return [(one.kind, one.name, one.groups) for one, *_ in found]


def transform(net, fqn, value, num_out=8):
    return net.module(fqn, "transform", value, shape=(2, num_out), params={f"{fqn}.weight": (num_out, 8)})


def test_each_operand_of_a_sum_that_has_its_shape_may_stand_for_it():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    graph = net.graph(net.function("add", transform(net, "a", x), transform(net, "b", x)))
    assert found_on(graph, granularity="branch") == [
        ("branch", "add without b", ("b",)),
        ("branch", "add without a", ("a",)),
    ]


def test_the_cut_of_a_branch_replaces_the_sum_by_what_is_kept():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    total = net.function("add", x, transform(net, "a", x))
    graph = net.graph(total)
    ((one,),) = find_candidates(graph, form_groups(graph), {}, protect_io=False, granularity="branch").found
    assert (one.cut, one.dead) == (Cut({total: x}), {0, 1})


@pytest.mark.parametrize(("name", "kept"), [("sub", ["b"]), ("add", ["b", "a"]), ("mul", ["b", "a"])])
def test_only_the_left_side_of_a_subtraction_is_kept(name, kept):
    net = HandBuiltGraph()
    x = net.input(2, 8)
    graph = net.graph(net.function(name, transform(net, "a", x), transform(net, "b", x)))
    assert [groups for _, _, (groups,) in found_on(graph, granularity="branch")] == kept


def test_an_operand_that_is_broadcast_is_not_kept_and_a_product_is_a_gate():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    graph = net.graph(net.function("mul", transform(net, "a", x), transform(net, "gate", x, 1)))
    assert found_on(graph, granularity="branch") == [("gate", "mul without gate", ("gate",))]


def test_operands_of_another_type_are_not_kept():
    net = HandBuiltGraph()
    ids = net.input(2, 8, dtype=torch.int64)
    graph = net.graph(net.function("add", transform(net, "a", net.input(2, 8)), ids))
    assert ("branch", "add without a", ("a",)) not in found_on(graph)


def test_each_operand_of_a_concat_may_go():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    graph = net.graph(net.cat(transform(net, "a", x), transform(net, "b", x, 4)))
    assert found_on(graph, granularity="branch") == [
        ("concat", "cat without a", ("a",)),
        ("concat", "cat without b", ("b",)),
    ]


def test_a_concat_of_one_tensor_with_itself_has_none():
    net = HandBuiltGraph()
    a = transform(net, "a", net.input(2, 8))
    assert found_on(net.graph(net.cat(a, a)), granularity="branch") == []


def test_a_tensor_that_several_merges_read_leaves_all_of_them():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    shared = transform(net, "shared", x)
    left = net.function("add", x, shared)
    right = net.function("mul", net.function("relu", x), shared)
    graph = net.graph(net.cat(left, right))
    assert ("several", "2 merges without shared", ("shared",)) in found_on(graph, granularity="branch")


def test_a_tensor_that_something_else_reads_does_not_leave_its_merges():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    shared = transform(net, "shared", x)
    left, right = net.function("add", x, shared), net.function("mul", x, shared)
    graph = net.graph(net.cat(left, right), net.function("relu", shared))
    assert "several" not in {kind for kind, _, _ in found_on(graph)}


def test_a_chain_is_bypassed_from_the_nearest_tensor_of_its_shape():
    net = HandBuiltGraph()
    a = transform(net, "a", net.input(2, 8))
    b = transform(net, "b", net.module("act", "activation", a))
    assert found_on(net.graph(transform(net, "c", b, 3))) == [
        ("bypass", "act by the model's input", ("a",)),
        ("bypass", "b by act", ("b",)),
    ]


def test_where_no_earlier_tensor_has_the_shape_the_shapes_are_the_reason():
    net = HandBuiltGraph()
    graph = net.graph(transform(net, "head", net.function("relu", net.input(2, 8)), 3))
    assert found_on(graph) == []
    (group,) = form_groups(graph)
    assert str(why_not(graph, group)) == "changes 8 channels to 3 and nothing of that shape exists before it"


def test_an_element_of_a_container_hands_on_its_input():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    with net.frame("blocks.0", x):
        y = net.function("add", x, transform(net, "blocks.0.fc", x))
        net.returns(y)
    graph = net.graph(transform(net, "head", y, 3))
    modules = {"blocks": nn.ModuleList()}
    assert found_on(graph, modules, granularity="block") == [("block", "blocks.0 by its input", ("blocks.0.fc",))]
    assert found_on(graph, granularity="block") == []


def test_a_module_that_is_called_twice_leaves_at_both_calls():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    for _ in range(2):
        x = net.function("add", x, transform(net, "shared", x))
    graph = net.graph(transform(net, "head", x, 3))
    assert [(name, groups) for kind, name, groups in found_on(graph) if kind == "shared"] == [
        ("shared with its branches at all its 2 calls", ("shared",)),
        ("shared by itself at all its 2 calls", ("shared",)),
    ]


def test_stem_and_head_are_critical_and_so_is_what_a_pattern_names():
    net = HandBuiltGraph()
    value = net.input(2, 8)
    for fqn in ("stem", "layers.0", "layers.1", "head"):
        value = transform(net, fqn, value)
    graph = net.graph(value)
    critical = find_candidates(graph, form_groups(graph), {}, protect=["layers.1"]).critical
    assert set(critical) == {"stem", "head", "layers.1"}
