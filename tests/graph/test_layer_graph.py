"""Layer graphs: made by hand, printed, handed to networkx, and refused where they contradict themselves."""

from dataclasses import replace

import pytest
import torch

from layerprune.capture import capture
from layerprune.errors import GraphError
from layerprune.graph import Cut
from layerprune.inputs import as_inputs
from models.hand_built import HandBuiltGraph
from models.nets import ExampleModel, Net, image, linear, parameter, rows


def residual():
    """A linear layer and a normed branch around it, and a layer that nothing reads."""
    net = HandBuiltGraph()
    x = net.input(2, 8)
    normed = net.function("layer_norm", x)
    with net.frame("block", normed):
        branch = net.module("block.fc", "transform", normed, params={"block.fc.weight": (8, 8)}, type_name="Linear")
        net.returns(branch)
    net.module("unread", "activation", x)
    return net.graph(net.function("add", x, branch))


# ---- text and networkx -----------------------------------------------------------------------------------------------


def test_a_graph_prints_one_line_a_layer():
    assert str(residual()).splitlines() == [
        "inputs: %0 2×8",
        "[0]  layer_norm  normalization layer_norm  %0 -> %1 2×8  in: model",
        "[1]  block.fc    transform Linear          %1 -> %2 2×8  params: block.fc.weight  in: block",
        "[2]  unread      activation Module         %0 -> %3 2×8  in: model  (dead)",
        "[3]  add         merge add                 %0, %2 -> %4 2×8  in: model",
        "outputs: %4 2×8",
    ]


def test_other_types_constants_and_several_results_are_printed():
    net = HandBuiltGraph()
    ids = net.input(1, 4, dtype=torch.int64)
    table = net.function("mul", (), params={"table": (4,)}, shape=(4,))
    one, other = net.split("chunk", ids, shapes=[(1, 2), (1, 2)], args=(2,))
    lines = str(net.graph(net.function("add", one, other, table))).splitlines()
    assert lines[0] == "inputs: %0 1×4 int64"
    assert lines[1].split("  ")[-3:] == ["params: table", "in: model", "(constant)"]
    assert "const -> %1 4" in lines[1]
    assert "%0 -> %2 1×2 int64, %3 1×2 int64" in lines[2]


def test_a_recorded_graph_prints_every_layer_and_call():
    graph = capture(Net(lambda net, x: net.a(torch.relu(net.a(x))), a=linear()), as_inputs(rows()))
    assert [line.split()[1] for line in str(graph).splitlines()[1:-1]] == ["a", "relu", "a#1"]


def test_networkx_gets_every_layer_with_what_flows():
    graph = residual().to_networkx()
    assert set(graph.edges) == {("in", 0), (0, 1), ("in", 2), ("in", 3), (1, 3), (3, "out")}
    assert graph.edges[1, 3]["values"] == (2,)
    assert graph.nodes[1] == {
        "name": "block.fc",
        "kind": "transform",
        "type_name": "Linear",
        "params": ("block.fc.weight",),
        "shapes": ((2, 8),),
        "frame": 2,
        "is_live": True,
    }
    assert [node for node, seen in graph.nodes(data="is_live") if seen is False] == [2]


def test_one_edge_holds_all_values_between_two_layers():
    net = HandBuiltGraph()
    one, other = net.split("chunk", net.input(2, 8), shapes=[(2, 4), (2, 4)], args=(2,))
    assert net.graph(net.function("add", one, other)).to_networkx().edges[0, 1]["values"] == (one, other)


# ---- lint ------------------------------------------------------------------------------------------------------------


def test_recorded_graphs_hold_together():
    """And are checked in whole: with a layer taken out, each of them contradicts itself."""
    table = Net(lambda net, x: net.a(x) + net.table, a=linear(), table=parameter(8))
    for graph in (capture(ExampleModel(), as_inputs(image())), capture(table, as_inputs(rows()))):
        graph.lint()
        with pytest.raises(GraphError):
            replace(graph, layers=graph.layers[1:]).lint()


def changed(layer, **parts):
    graph = residual()
    layers = [replace(one, **parts) if one.index == layer else one for one in graph.layers]
    return replace(graph, layers=tuple(layers))


@pytest.mark.parametrize(
    ("graph", "fault"),
    [
        (lambda: changed(1, index=7), "'block.fc' has the number 7 at place 1"),
        (lambda: changed(1, operands=((9,),)), "'block.fc' reads %9, which does not exist"),
        (lambda: changed(1, operands=((4,),)), "'block.fc' reads %4, which 'add' makes later"),
        (lambda: changed(1, outputs=(1,)), "'block.fc' makes %1, which says that layer 0 does"),
        (lambda: changed(1, frame=99), "'block.fc' lies in frame 99"),
        (lambda: changed(1, frame=0), "'block.fc' is of call 0 of 'block.fc', its frame of ''"),
        (lambda: changed(1, params=("fc.weight",)), "uses the parameter 'fc.weight', which does not exist"),
        (lambda: replace(residual(), inputs=(4,)), "the input %4 is made by layer 'add'"),
        (lambda: replace(residual(), outputs=(9,)), "the output %9 does not exist"),
        (lambda: replace(residual(), implicit_inputs=frozenset({9})), "the implicit input %9 does not exist"),
        (lambda: replace(residual(), shape_reads=frozenset({(0, 9)})), "the shape of %0 is read in frame 9"),
        (lambda: replace(residual(), param_ids={}), "param_ids and param_sizes name different parameters"),
        (lambda: replace(residual(), frames=residual().frames[:1] * 2), "has the number 0 at place 1"),
    ],
)
def test_what_contradicts_itself_is_named(graph, fault):
    with pytest.raises(GraphError) as caught:
        graph().lint()
    assert fault in str(caught.value)


def test_a_call_that_occurs_twice_and_one_outside_its_caller_are_named():
    graph = residual()
    frames = list(graph.frames)
    frames[2] = replace(frames[2], parent=3, fqn=frames[1].fqn, call=frames[1].call)
    with pytest.raises(GraphError, match="is called in frame 3; call 0 of 'block' occurs twice"):
        replace(graph, frames=tuple(frames)).lint()


def test_liveness_that_does_not_follow_from_the_operands_is_named():
    graph = residual()
    vars(graph)["live"] = frozenset({0, 1, 2, 3})
    with pytest.raises(GraphError, match="'unread' is listed as live"):
        graph.lint()
    graph = residual()
    vars(graph)["readers"] = {**graph.readers, 2: ()}
    with pytest.raises(GraphError, match="'add' is not listed as a reader of %2"):
        graph.lint()


def test_many_faults_are_cut_short():
    net = HandBuiltGraph()
    value = net.input(2, 8)
    for _ in range(9):
        value = net.function("relu", value)
    graph = net.graph(value)
    with pytest.raises(GraphError, match=r"; and 4 more$"):
        replace(graph, layers=tuple(replace(layer, index=-1) for layer in graph.layers)).lint()


# ---- liveness --------------------------------------------------------------------------------------------------------


def test_a_branch_dies_when_the_sum_hands_on_its_other_side():
    graph = residual()
    assert graph.live == {0, 1, 3}
    assert graph.dead(Cut({4: 0})) == {0, 1, 3}


def test_a_layer_lives_as_long_as_one_reader_does():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    a = net.module("a", "transform", x)
    b, c = net.module("b", "transform", a), net.module("c", "transform", a)
    graph = net.graph(net.cat(b, c))
    assert graph.dead(Cut(dropped=frozenset({(3, b)}))) == {1}
    assert graph.dead(Cut(dropped=frozenset({(3, b), (3, c)}))) == {0, 1, 2}
    assert graph.dead(Cut({b: a})) == {1}
    assert graph.dead(Cut({b: x, c: x})) == {0, 1, 2}


def test_a_value_that_the_model_returns_keeps_its_layer():
    net = HandBuiltGraph()
    a = net.module("a", "transform", net.input(2, 8))
    b = net.module("b", "transform", a)
    assert net.graph(b, a).dead(Cut({b: 0})) == {1}
    chain = HandBuiltGraph()
    a = chain.module("a", "transform", chain.input(2, 8))
    b = chain.module("b", "transform", a)
    assert chain.graph(b).dead(Cut({b: 0})) == {0, 1}


def test_substitutes_of_substitutes_are_followed():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    a = net.module("a", "transform", x)
    b = net.module("b", "transform", a)
    c = net.module("c", "transform", b)
    assert net.graph(c).dead(Cut({b: a, a: x})) == {0, 1}


def test_a_parameter_goes_when_the_last_of_its_users_does():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    a = net.module("a", "transform", x, params={"a.weight": (8, 8)})
    net.tie("b.weight", "a.weight")
    b = net.module("b", "transform", a, params={"b.weight": (8, 8)})
    graph = net.graph(net.module("c", "transform", b, params={"c.weight": (8, 8)}))
    assert graph.num_params == 128
    assert graph.dead_params(graph.dead(Cut({b: a}))) == frozenset()
    assert graph.dead_params(graph.dead(Cut({b: x}))) == {graph.param_ids["a.weight"]}


def test_some_death_is_told_without_finding_all():
    graph = residual()
    assert graph.kills_any(Cut({4: 0}), {1})
    assert not graph.kills_any(Cut({1: 0}), {1})
