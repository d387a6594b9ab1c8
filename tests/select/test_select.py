"""Selection: within a cap, as close to it as possible, at the least impact; checked against trying every subset."""

import math
import random
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.cost import bundles, params_taken
from layerprune.graph import Refusal, RefusalCode
from layerprune.proof import JointRemovals
from layerprune.select import MORE_SLACK, SLACK, Problem, Resource, select
from layerprune.select.conflicts import conflicts
from layerprune.select.strategies.exact import WORTH
from models.nets import ExampleModel, Net, conv, image, linear, randomised, rows, tokens


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = linear(8, width), linear(width, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def independent(*widths):
    """A pruner of a net whose removals, one a block, have nothing to do with each other."""
    model = nn.Sequential(linear(), *(Residual(width) for width in widths), linear())
    return UniversalLayerPruner(randomised(model), example_inputs=rows())


@pytest.fixture(scope="module")
def blocks():
    return independent(1, 2, 3, 5, 9, 13, 21, 34)


def problem_of(pruner, impacts, forbidden=(), prove=None):
    """A problem with made-up impacts and no budget, in which the sets that hold a forbidden one are not valid."""
    removals = [replace(r, impact=impact) for r, impact in zip(pruner.removals, impacts, strict=True)]

    def holds(some):
        if any(set(bad) <= set(some) for bad in forbidden):
            raise Refusal(RefusalCode.NOTHING_DIES)

    return Problem(graph=pruner.graph, removals=removals, resources=[], prove=prove or holds)


def params_of(pruner, cap):
    """The budget of parameters, counted without the library's bundles."""
    joints = JointRemovals(pruner._found.prover, pruner.removals, pruner._original)
    taken = [params_taken(pruner.graph, pruner._found.prover.modules, r.lowering) for r in pruner.removals]
    return Resource(
        name="parameters",
        pieces=bundles(pruner.graph.size_of_param, taken),
        measure=joints.num_params,
        at_most=cap,
        is_filled=True,
        total=pruner.graph.num_params,
        argument="max_param_reduction",
    )


def choose(pruner, problem, cap, **options):
    return select(replace(problem, resources=[params_of(pruner, cap)]), **options)


def size_of(pruner, selection):
    """The parameters of removals that share none."""
    return sum(pruner.removals[i].num_params for i in selection.chosen)


def proven(pruner):
    """The check that a plan makes: realised and run."""
    return JointRemovals(pruner._found.prover, pruner.removals, pruner._original).proven


def every_valid_set(pruner, problem):
    """(parameters, impact) of each subset that holds together."""
    found = {}
    count = params_of(pruner, 0).measure
    for size in range(len(problem.removals) + 1):
        for some in combinations(range(len(problem.removals)), size):
            try:
                if some:
                    problem.prove(some)
                num_params = count(some)
            except Refusal:
                continue
            found[some] = (num_params, sum(problem.removals[i].impact for i in some))
    return found


def slack_of(problem, valid, cap):
    """How far below the most that fits a choice may stay: with data further, where that saves most of the impact."""
    if not problem.has_data:
        return SLACK
    fitting = [(size, impact) for size, impact in valid.values() if size <= cap]
    most = max(size for size, _ in fitting)
    near, far = (
        min((impact for size, impact in fitting if size >= (1 - slack) * most), default=0.0)
        for slack in (SLACK, MORE_SLACK * SLACK)
    )
    return MORE_SLACK * SLACK if far <= WORTH * near else SLACK


def assert_best(pruner, problem, cap, valid):
    """No valid set under the cap takes out more, and none that comes as close costs less."""
    chosen = choose(pruner, problem, cap).chosen
    num_params, slack = valid[chosen][0], slack_of(problem, valid, cap)
    assert num_params <= cap
    fitting = [(size, impact) for size, impact in valid.values() if size <= cap]
    most = max(size for size, _ in fitting)
    assert num_params >= most - 1.1 * slack * most  # a tenth of the slack for the solver's tolerance
    if not most:
        assert chosen == ()
        return
    impact = sum(problem.removals[i].impact for i in chosen)
    least = min(impact for size, impact in fitting if size >= most - slack * most)
    assert impact <= least + 1e-6


# ---- made-up impacts and conflicts on independent removals -----------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_of_all_subsets(blocks, seed):
    draw = random.Random(seed)
    problem = replace(problem_of(blocks, [draw.random() for _ in blocks.removals]), has_data=seed % 2 == 0)
    valid = every_valid_set(blocks, problem)
    total = max(size for size, _ in valid.values())
    for share in (0.05, 0.13, 0.4, 0.77, 1.0):
        assert_best(blocks, problem, int(share * total), valid)


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_the_subsets_that_hold_together(blocks, seed):
    draw = random.Random(100 + seed)
    number = range(len(blocks.removals))
    forbidden = [draw.sample(number, 2) for _ in range(5)]
    problem = problem_of(blocks, [draw.random() for _ in number], forbidden)
    valid = every_valid_set(blocks, problem)
    for share in (0.2, 0.5, 0.9):
        assert_best(blocks, problem, int(share * sum(r.num_params for r in blocks.removals)), valid)


def test_three_that_fail_only_together_are_not_chosen_together(blocks):
    problem = problem_of(blocks, [0.1] * 8, forbidden=[(5, 6, 7)])
    valid = every_valid_set(blocks, problem)
    cap = sum(r.num_params for r in blocks.removals)
    assert_best(blocks, problem, cap, valid)
    assert not {5, 6, 7} <= set(choose(blocks, problem, cap).chosen)


def test_of_two_sets_that_reach_the_cap_the_cheaper_is_taken():
    pruner = independent(4, 4)
    size = pruner.removals[0].num_params
    assert choose(pruner, problem_of(pruner, [0.2, 0.1]), size).chosen == (1,)
    assert choose(pruner, problem_of(pruner, [0.1, 0.2]), size).chosen == (0,)


def test_getting_closer_to_the_cap_comes_before_impact():
    pruner = independent(4, 9)
    cap = pruner.removals[1].num_params
    assert choose(pruner, problem_of(pruner, [0.001, 100.0]), cap).chosen == (1,)


def test_further_below_the_cap_it_stays_where_that_saves_most_of_the_impact():
    pruner = independent(84, 101)
    cap = pruner.removals[1].num_params
    assert (1 - MORE_SLACK * SLACK) * cap <= pruner.removals[0].num_params < (1 - SLACK) * cap
    found = [choose(pruner, replace(problem_of(pruner, [i, 1.0]), has_data=True), cap) for i in (0.4, 0.6)]
    assert [selection.chosen for selection in found] == [(0,), (1,)]
    assert "at least halves the impact" in found[0].notes[0]
    assert choose(pruner, problem_of(pruner, [0.4, 1.0]), cap).chosen == (1,), "without data"


def test_within_the_slack_impact_comes_first():
    pruner = independent(100, 101)
    cap = pruner.removals[1].num_params
    assert pruner.removals[0].num_params >= (1 - SLACK) * cap
    assert choose(pruner, problem_of(pruner, [0.1, 100.0]), cap).chosen == (0,)


def test_an_unknown_impact_counts_as_worse_than_any_known_one():
    pruner = independent(4, 4, 4)
    size = pruner.removals[0].num_params
    problem = problem_of(pruner, [math.nan, 0.9, math.inf])
    assert choose(pruner, problem, size).chosen == (1,)


def test_with_no_impact_known_at_all_the_cap_decides(blocks):
    problem = problem_of(blocks, [math.nan] * 8)
    cap = problem.removals[3].num_params + problem.removals[7].num_params
    assert (1 - SLACK) * cap <= size_of(blocks, choose(blocks, problem, cap)) <= cap


@pytest.mark.parametrize("cap", [0, 1, 24])
def test_a_cap_below_every_removal_chooses_nothing_and_says_so(blocks, cap):
    problem = problem_of(blocks, [0.1] * 8)
    assert min(r.num_params for r in problem.removals) == 25
    smallest = min(problem.removals, key=lambda r: r.num_params)
    share, allowed = 25 / blocks.graph.num_params, cap / blocks.graph.num_params
    (why,) = choose(blocks, problem, cap).notes
    assert why.startswith(
        f"no removal is small enough for the budget: the smallest, {smallest.name}, takes {share:.1%} of the "
        f"parameters, the cap is {allowed:.1%}; raise max_param_reduction to "
    )
    assert share <= float(why.split()[-3]) <= 1.01 * share, "the value named lets it in"


def test_the_smallest_removal_is_chosen_when_it_fits_exactly(blocks):
    assert size_of(blocks, choose(blocks, problem_of(blocks, [0.1] * 8), 25)) == 25


def test_nothing_to_choose_from_is_no_choice():
    pruner = UniversalLayerPruner(
        randomised(nn.Sequential(linear(8, 4), linear(4, 3), linear(3, 40))), example_inputs=rows()
    )
    assert pruner.removals == []
    assert choose(pruner, problem_of(pruner, []), 100).chosen == ()


def test_when_nothing_holds_together_but_single_removals_one_is_chosen(blocks):
    pairs = list(combinations(range(8), 2))
    problem = problem_of(blocks, [0.1] * 8, forbidden=pairs)
    selection = choose(blocks, problem, 10_000)
    assert size_of(blocks, selection) == max(r.num_params for r in problem.removals)


def test_when_not_even_one_removal_holds_none_is_chosen(blocks):
    problem = problem_of(blocks, [0.1] * 8, forbidden=[(i,) for i in range(8)])
    selection = choose(blocks, problem, 10_000)
    assert selection.chosen == ()


def test_the_same_problem_has_the_same_answer(blocks):
    problem = problem_of(blocks, [0.5] * 8)
    assert choose(blocks, problem, 400) == choose(blocks, problem, 400)


def test_very_small_and_very_large_impacts_are_told_apart():
    pruner = independent(4, 4, 4)
    size = pruner.removals[0].num_params
    assert choose(pruner, problem_of(pruner, [3e-9, 2e-9, 1e-9]), size).chosen == (2,)
    assert choose(pruner, problem_of(pruner, [1e9, 1e8, 2e9]), size).chosen == (1,)


# ---- real nets: removals that overlap, exclude each other, share slices ----------------------------------------------


class PostNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.norm1 = linear(), nn.LayerNorm(8)
        self.up, self.down, self.norm2 = linear(8, 16), linear(16, 8), nn.LayerNorm(8)

    def forward(self, x):
        x = self.norm1(x + self.mix(x))
        return self.norm2(x + self.down(torch.relu(self.up(x))))


def branches(net, x):
    y = net.s(x)
    return net.h(torch.cat([net.a(y), net.b(y), net.c(y)], 1))


NETS = {
    "post-norm": (lambda: nn.Sequential(linear(), PostNorm(), nn.Linear(8, 8), linear()), tokens),
    "seed": (ExampleModel, image),
    "concat": (lambda: Net(branches, s=conv(3, 4), a=conv(4, 2), b=conv(4, 5), c=conv(4, 8), h=conv(15, 9)), image),
}


@pytest.mark.parametrize("name", NETS)
def test_on_real_nets_the_choice_is_the_best_of_all_proven_subsets(name):
    build, inputs = NETS[name]
    pruner = UniversalLayerPruner(randomised(build()), example_inputs=inputs())
    assert 3 <= len(pruner.removals) <= 10
    problem = problem_of(pruner, [r.impact for r in pruner.removals], prove=proven(pruner))
    valid = every_valid_set(pruner, problem)
    for share in (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95):
        assert_best(pruner, problem, int(share * pruner.graph.num_params), valid)


@pytest.mark.parametrize("name", NETS)
def test_sets_that_fail_the_proof_are_those_that_hold_a_conflict(name):
    build, inputs = NETS[name]
    pruner = UniversalLayerPruner(randomised(build()), example_inputs=inputs())
    problem = problem_of(pruner, [r.impact for r in pruner.removals], prove=proven(pruner))
    known = conflicts(pruner.graph, pruner.removals)
    pairs = {some for some in every_valid_set(pruner, problem) if len(some) == 2}
    for pair in combinations(range(len(pruner.removals)), 2):
        if pair not in pairs:
            assert pair in known, [str(pruner.removals[i]) for i in pair]


def test_branches_of_one_concat_exclude_each_other_where_nothing_would_be_left():
    pruner = UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image())
    a, b = (next(i for i, r in enumerate(pruner.removals) if r.groups == (name,)) for name in ("conv2a", "conv2b"))
    assert (min(a, b), max(a, b)) in conflicts(pruner.graph, pruner.removals)


def test_two_of_three_branches_may_leave_and_the_third_stays():
    build, inputs = NETS["concat"]
    pruner = UniversalLayerPruner(randomised(build()), example_inputs=inputs())
    plan = pruner.plan(max_param_reduction=0.95)
    leaving = {name for removal in plan.removals if removal.kind == "concat" for name in removal.groups}
    assert len(leaving) == 2
