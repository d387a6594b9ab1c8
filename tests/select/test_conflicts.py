"""Conflicts: what the layer graph alone tells not to hold together, on graphs of a few layers."""

from types import SimpleNamespace

from layerprune.graph import Cut
from layerprune.select.conflicts import conflicts, exclusions_of
from layerprune.select.constraints import Exclusion
from models.hand_built import HandBuiltGraph


def removals(graph, *cuts):
    """Removals as far as conflicts look at them: the cut, and the layers that die by it."""
    return [SimpleNamespace(cut=cut, dead=graph.dead(cut)) for cut in cuts]


def chain(num=4):
    """A chain of transforms: its graph, and its values from the input on."""
    net = HandBuiltGraph()
    values = [net.input(2, 8)]
    for index in range(num):
        values.append(net.module(str(index), "transform", values[-1]))
    return net.graph(values[-1]), values


def branches(num=3):
    """Branches of one input that a concat joins: its graph, the concat's layer, and the operands."""
    net = HandBuiltGraph()
    x = net.input(2, 8)
    operands = [net.module(str(index), "transform", x) for index in range(num)]
    return net.graph(net.cat(*operands)), num, operands


def test_removals_of_different_layers_of_a_chain_go_together():
    graph, v = chain()
    assert conflicts(graph, removals(graph, Cut({v[1]: v[0]}), Cut({v[3]: v[2]}))) == []
    assert conflicts(graph, removals(graph, Cut({v[1]: v[0]}), Cut({v[2]: v[1]}))) == []  # one substitute follows


def test_one_of_which_the_other_is_a_part_is_needless():
    graph, v = chain()
    assert conflicts(graph, removals(graph, Cut({v[3]: v[0]}), Cut({v[2]: v[1]}))) == [(0, 1)]


def test_two_ways_to_replace_one_tensor_exclude_each_other():
    net = HandBuiltGraph()
    x = net.input(2, 8)
    a, b = net.module("a", "transform", x), net.module("b", "transform", x)
    total = net.function("add", a, b)
    graph = net.graph(net.module("head", "transform", total))
    assert conflicts(graph, removals(graph, Cut({total: a}), Cut({total: b}))) == [(0, 1)]


def test_a_substitute_that_dies_is_a_conflict():
    graph, v = chain(5)
    later = Cut({v[4]: v[2]})
    assert conflicts(graph, removals(graph, later, Cut({v[3]: v[1]}))) == [(0, 1)]
    assert conflicts(graph, removals(graph, later, Cut({v[1]: v[0]}))) == []


def test_branches_of_a_concat_may_go_as_long_as_one_is_left():
    graph, cat, operands = branches(2)
    drops = [Cut(dropped=frozenset({(cat, value)})) for value in operands]
    assert conflicts(graph, removals(graph, *drops)) == [(0, 1)]
    graph, cat, operands = branches(3)
    drops = [Cut(dropped=frozenset({(cat, value)})) for value in operands]
    assert conflicts(graph, removals(graph, *drops)) == []
    (ban,) = exclusions_of(graph, removals(graph, *drops))
    assert ban == Exclusion(((0,), (1,), (2,)))
    assert ban.forbids([0, 1, 2])
    assert not ban.forbids([0, 1])


def test_a_branch_that_two_removals_drop_is_one_alternative_of_the_ban():
    graph, cat, (a, b, c) = branches(3)
    cuts = [Cut(dropped=frozenset({(cat, value) for value in some})) for some in ((a,), (b,), (c,), (a, b))]
    bans = exclusions_of(graph, removals(graph, *cuts))
    assert Exclusion(((0, 3), (1, 3), (2,))) in bans
    assert {ban.alternatives for ban in bans if len(ban.alternatives) == 2} >= {((0,), (3,)), ((2,), (3,))}


def test_removals_far_apart_are_not_compared_and_do_not_conflict():
    graph, v = chain(9)
    cuts = [Cut({v[i + 1]: v[i]}) for i in range(0, 9, 2)]
    assert conflicts(graph, removals(graph, *cuts)) == []
