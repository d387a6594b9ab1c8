"""Projections that meet in one set: what it takes is what the programme counts; what can be made can be chosen."""

import random
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.edits import folds_of
from layerprune.errors import CriticalGroupError
from layerprune.graph import Refusal
from layerprune.modules import num_params
from layerprune.select import SLACK, Budgets, amount, exclusions_of, select
from layerprune.select.interactions import with_interactions
from models.nets import Net, conv, image, linear, randomised, rows


def stack(*widths):
    """Linear layers of these widths, one after the other; those between the first and the last may go."""
    layers = [layer for a, b in pairwise(widths) for layer in (linear(a, b), nn.Tanh())]
    return randomised(nn.Sequential(*layers[:-1]))


def convolutions(*widths):
    layers = [layer for a, b in pairwise(widths) for layer in (conv(a, b), nn.ReLU())]
    return randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(widths[-1], 4)))


def joined(net, x):
    y = net.pool(net.a(x).relu())
    y = torch.cat([net.b(y), net.c(y)], 1).relu()
    return net.h(net.e(net.d(y).relu()).relu())


def with_concat():
    return randomised(
        Net(
            joined,
            a=conv(3, 5),
            pool=nn.MaxPool2d(2),
            b=conv(5, 4),
            c=conv(5, 7),
            d=conv(11, 6),
            e=conv(6, 8),
            h=conv(8, 3),
        )
    )


def joined_twice(net, x):
    y = torch.tanh(net.s(x))
    y = torch.tanh(net.c(torch.cat([net.a(y), net.b(y)], 1)))
    return net.h(torch.cat([net.d(y), net.e(y).tanh()], 1))


def with_a_bypass_between():
    """Without 'c' the first concat is read by what is sliced, or leaves, behind it."""
    parts = {"a": linear(8, 4), "b": linear(8, 5), "c": linear(9), "d": linear(9, 3), "e": linear(9, 4)}
    return randomised(Net(joined_twice, s=linear(), **parts, h=linear(7, 3)))


#: Nets in which projections meet with each other, with bypasses, with a pool between them and with a concat; and one in
#: which slices meet with a bypass.
CASES = {
    "widening and narrowing": lambda: (stack(8, 16, 24, 20, 28, 5), rows()),
    "six convolutions": lambda: (convolutions(3, 6, 10, 7, 9, 5, 8), image(2)),
    "narrow places": lambda: (stack(8, 24, 8, 20, 12, 10, 5), rows()),
    "among bypasses": lambda: (stack(8, 10, 9, 9, 12, 5), rows()),
    "a set that grows": lambda: (stack(8, 40, 6, 7, 64, 16, 5), rows()),
    "a concat": lambda: (with_concat(), image(2)),
    "slices and a bypass": lambda: (with_a_bypass_between(), rows()),
}


@cache
def subject(name):
    """A pruner, and of every set that holds together and shrinks the model what it takes: counted in the model left."""
    model, example = CASES[name]()
    pruner = UniversalLayerPruner(model, calibration=[example, example.flip(0)])
    joints, sizes = pruner._planner.joints, {(): 0}
    for num in range(1, len(pruner.removals) + 1):
        for some in combinations(range(len(pruner.removals)), num):
            try:
                left = num_params(joints.without(some))
            except Refusal:
                continue
            sizes[some] = num_params(model) - left
    return pruner, sizes


@pytest.mark.parametrize("name", CASES)
def test_what_the_programme_counts_for_a_set_is_what_leaves_with_it(name):
    pruner, sizes = subject(name)
    pieces = pruner._planner.meter.param_pieces
    assert pruner._planner.meter._companies
    bans = exclusions_of(pruner.graph, pruner.removals)  # of sets that are the same as a smaller one
    for some, size in sizes.items():
        if not any(ban.forbids(some) for ban in bans):
            assert amount(pieces, some) == pytest.approx(size), some


@pytest.mark.parametrize("name", ["narrow places", "a concat"])
def test_so_it_is_with_multiply_accumulates(name):
    pruner, sizes = subject(name)
    macs = pruner._planner.meter.macs(1.0, True)
    bans = exclusions_of(pruner.graph, pruner.removals)
    for some in sizes:
        if not any(ban.forbids(some) for ban in bans):
            assert amount(macs.pieces, some) == pytest.approx(macs.measure(some)), some


@pytest.mark.parametrize("name", CASES)
def test_no_set_is_banned_that_could_be_made_and_is_not_the_same_as_a_smaller_one(name):
    pruner, sizes = subject(name)
    joints = pruner._planner.joints
    dead = {some: joints.proven(some).dead for some in sizes if some}
    for ban in exclusions_of(pruner.graph, pruner.removals):
        for some in dead:
            if ban.forbids(some):
                assert any(set(less) < set(some) and dead[less] == dead[some] for less in dead), some


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_exact_choice_is_the_best_of_all_sets_that_can_be_made(name, seed):
    pruner, sizes = subject(name)
    draw = random.Random(seed)
    impacts = [draw.random() for _ in pruner.removals]
    for cap in (0.1 + 0.03 * seed, 0.35, 0.7):
        resources = pruner._planner.meter.resources(Budgets(max_param_reduction=cap))
        problem = pruner._planner.problem(resources)
        removals = [replace(r, impact=impact) for r, impact in zip(problem.removals, impacts, strict=True)]
        chosen = select(replace(problem, removals=removals, has_data=False), "exact").chosen
        fitting = {some: size for some, size in sizes.items() if size <= cap * pruner.graph.num_params and size >= 0}
        most = max(fitting.values())
        assert sizes[chosen] >= (1 - SLACK) * most - 1e-6 * most
        near = [sum(impacts[i] for i in some) for some, size in fitting.items() if size >= (1 - SLACK) * most]
        assert sum(impacts[i] for i in chosen) <= min(near) + 1e-9


@pytest.mark.parametrize("strategy", ["exact", "auto", "greedy", "evolution"])
def test_whatever_chooses_no_choice_leaves_a_larger_model(strategy):
    pruner, sizes = subject("a set that grows")
    assert min(sizes.values()) < 0, "there is a set that would"
    for cap in (0.1, 0.5, 0.99):
        plan = pruner.plan(max_param_reduction=cap, strategy=strategy)
        assert (1 - cap) * plan.num_params_before <= plan.num_params_after < plan.num_params_before


def test_a_set_that_would_leave_a_larger_model_is_refused_by_name_with_the_numbers():
    """'2' and '4' hold 40·6 + 6 + 6·7 + 7 parameters; '6' would read 40 channels instead of 7, with 64 outputs."""
    pruner, _ = subject("a set that grows")
    assert pruner.plan(groups=["2"]).reduction > 0
    assert pruner.plan(groups=["4"]).reduction > 0
    with pytest.raises(CriticalGroupError, match=r"295 parameters would leave, .* would grow by 2,112"):
        pruner.plan(groups=["2", "4"])


def test_a_set_may_hold_one_that_grows_where_the_whole_shrinks():
    """Without '6' nothing reads what '2' and '4' widen but '8', and that has fewer outputs."""
    pruner, _ = subject("a set that grows")
    names = ["2", "4", "6"]
    saved = pruner.plan(groups=names)
    assert saved.num_params_before - saved.num_params_after == 246 + 49 + 7 * 64 + 64 - 16 * (40 - 64)


def test_a_projection_whose_reader_also_leaves_is_read_by_the_next_one():
    pruner, _ = subject("six convolutions")
    plan = pruner.plan(groups=["2", "4"])
    assert [(fold.fqn, fold.num_in) for fold in folds_of(plan.edits)] == [("6", 6)]


def test_more_than_the_parts_is_written_in_pieces_by_inclusion_and_exclusion():
    alone = {(0,): 5.0, (1,): 7.0, (2,): 1.0}
    true = {(0, 1): 10.0, (0, 1, 2): 20.0}
    found = with_interactions(alone, list(true), lambda some: true[some])
    for some, size in [((0,), 5), ((1,), 7), ((2,), 1), ((0, 2), 6), ((1, 2), 8), ((0, 1), 10), ((0, 1, 2), 20)]:
        assert amount(found, some) == size


def test_sets_that_hold_one_that_fails_are_not_asked_for():
    asked = []

    def size_of(some):
        asked.append(some)
        return None if some == (0, 1) else 3.0

    assert with_interactions({(0,): 1.0, (1,): 1.0, (2,): 1.0}, [(0, 1), (1, 2), (0, 1, 2)], size_of)[(1, 2)] == -1.0
    assert asked == [(0, 1), (1, 2)]
