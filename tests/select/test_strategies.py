"""Strategies: each ends in a proven set within the budgets, and is as good as what it promises to look at."""

import math
import random
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from test_select import every_valid_set, independent, params_of, problem_of, size_of, slack_of
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.errors import BudgetError
from layerprune.report import doubtful_choices
from layerprune.select import Effort, Search, frontier, select
from layerprune.select.problem import with_unknown
from layerprune.select.strategies import evolution as evolution_module
from layerprune.select.strategies.resampled import BESIDE, DEEP, FIRST, NEXT, ROUNDS
from layerprune.select.strategies.search_budget import SHARE, Race, race, sets_of_greedy
from models.nets import linear, randomised, rows

BATCHES = [rows(6, seed=seed) for seed in (1, 2, 3, 4)]
WIDTHS = (1, 2, 3, 5, 9, 13, 21, 34)


@pytest.fixture(scope="module")
def blocks():
    return independent(*WIDTHS)


def world(blocks, seed, strength=0.3):
    """Made-up impacts and pairs, and the true harm of each set by them."""
    rng = np.random.default_rng(seed)
    num = len(blocks.removals)
    impacts = rng.uniform(0.1, 1.0, num)
    half = rng.normal(0, strength, (num, num))
    pairs = (half + half.T) / 2
    np.fill_diagonal(pairs, 0.0)

    def harm(sets):
        return np.array([impacts[list(some)].sum() + pairs[np.ix_(some, some)].sum() for some in sets])

    return impacts, pairs, harm


def budgeted(blocks, problem, cap):
    return replace(problem, resources=[params_of(blocks, cap)])


def in_reach(blocks, problem, cap):
    """Every valid set that uses the cap as much as a choice has to."""
    valid = every_valid_set(blocks, problem)
    fitting = {some: size for some, (size, _) in valid.items() if size <= cap}
    least = (1 - slack_of(problem, valid, cap)) * max(fitting.values())
    return [some for some, size in fitting.items() if size >= least]


CAPS = (0.2, 0.5, 0.8)


# ---- quadratic -------------------------------------------------------------------------------------------------------


def test_with_pairs_the_choice_is_mostly_the_best_of_all_subsets_and_never_worse_than_without():
    blocks = independent(*WIDTHS[:7])
    best = total = 0
    for seed in range(6):
        impacts, pairs, harm = world(blocks, seed)
        problem = replace(problem_of(blocks, impacts), pairs=pairs)
        for share in CAPS:
            cap = int(share * sum(r.num_params for r in blocks.removals))
            found = select(budgeted(blocks, problem, cap), "quadratic").chosen
            sets = in_reach(blocks, problem, cap)
            exact = select(budgeted(blocks, problem, cap), "exact").chosen
            assert found in sets
            assert harm([found])[0] <= harm([exact])[0] + 1e-9
            best += harm([found])[0] <= harm(sets).min() + 1e-9
            total += 1
    assert best >= 0.9 * total


# ---- greedy ----------------------------------------------------------------------------------------------------------


def greedily(blocks, problem, cap, harm):
    """What a greedy choice is, written apart: the least more harm per parameter, for as long as one fits."""
    held, sizes = (), [r.num_params for r in blocks.removals]
    while True:
        entries = [i for i in range(len(sizes)) if i not in held and sum(sizes[j] for j in (*held, i)) <= cap]
        if not entries:
            return tuple(sorted(held))
        now = harm([held])[0] if held else 0.0
        held = (*held, min(entries, key=lambda i: (harm([sorted((*held, i))])[0] - now) / sizes[i]))


@pytest.mark.parametrize("seed", range(4))
def test_greedy_takes_the_least_harm_per_parameter_step_by_step(blocks, seed):
    impacts, _, harm = world(blocks, seed)
    problem = replace(problem_of(blocks, impacts), harm=harm)
    for share in CAPS:
        cap = int(share * sum(r.num_params for r in blocks.removals))
        assert select(budgeted(blocks, problem, cap), "greedy").chosen == greedily(blocks, problem, cap, harm)


def test_greedy_passes_over_what_fails_with_what_it_holds(blocks):
    impacts = np.linspace(0.1, 0.8, 8)
    problem = problem_of(blocks, impacts, forbidden=list(combinations(range(8), 2)))
    problem = replace(problem, harm=lambda sets: np.array([impacts[list(some)].sum() for some in sets]))
    assert len(select(budgeted(blocks, problem, 10_000), "greedy").chosen) == 1


# ---- evolution -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_evolution_ends_within_the_budget_and_no_worse_than_it_began(blocks, seed):
    impacts, _, harm = world(blocks, seed)
    asked = []

    def counting(sets):
        asked.extend(sets)
        return harm(sets)

    problem = replace(problem_of(blocks, impacts), harm=counting, seed=seed)
    cap = int(0.5 * sum(r.num_params for r in blocks.removals))
    sets = in_reach(blocks, problem, cap)
    found = select(budgeted(blocks, problem, cap), "evolution")
    exact = select(budgeted(blocks, problem, cap), "exact")
    assert found.chosen in sets
    assert harm([found.chosen])[0] <= harm([exact.chosen])[0]
    assert len(asked) <= evolution_module.EVALUATIONS + 8
    assert select(budgeted(blocks, problem, cap), "evolution") == found, "the seed decides"


# ---- resampled -------------------------------------------------------------------------------------------------------


def test_sets_that_are_made_correct_impacts_that_do_not_add_up(blocks):
    cap = int(0.5 * sum(r.num_params for r in blocks.removals))
    gained: list[float] = []
    for seed in range(10):
        impacts, _, harm = world(blocks, seed, strength=0.3)
        asked: list[tuple[int, ...]] = []

        def counting(sets, harm=harm, asked=asked):
            asked.extend(sets)
            return harm(sets)

        problem = replace(problem_of(blocks, impacts), harm=counting, has_data=True)
        found = select(budgeted(blocks, problem, cap), "resampled").chosen
        exact = select(budgeted(blocks, replace(problem, has_data=False), cap), "exact").chosen
        sets = in_reach(blocks, replace(problem, has_data=False), cap)
        least, most = harm(sets).min(), harm(sets).max()
        near = harm([exact, *(some for some in asked if some in sets)]).min()
        assert harm([found])[0] <= (near if found in sets else 0.5 * near)
        assert len(asked) <= sum(FIRST) + ROUNDS * sum(NEXT)
        gained.append((harm([exact])[0] - harm([found])[0]) / (most - least))
    assert min(gained) >= 0
    assert np.mean(gained) > 0.05


def test_a_set_that_stays_below_the_cap_is_taken_where_it_was_seen_to_harm_half_as_much(blocks):
    impacts = np.ones(8)
    whole = problem_of(blocks, impacts)
    cap = int(0.5 * sum(r.num_params for r in blocks.removals))
    near = set(in_reach(blocks, whole, cap))
    for share, stays_below in ((0.4, True), (0.6, False)):

        def harm(sets, share=share):
            return np.array([1.0 if tuple(some) in near else share for some in sets])

        selection = select(budgeted(blocks, replace(whole, harm=harm, has_data=True), cap), "resampled")
        assert (selection.chosen not in near) == stays_below
        assert any("stays below" in note for note in selection.notes) == stays_below


def test_of_the_sets_that_draws_choose_the_one_that_harms_least_is_taken(blocks):
    impacts, _, _ = world(blocks, 0)
    draws = np.random.default_rng(1).uniform(0.1, 1.0, (6, 8))
    cap = int(0.5 * sum(r.num_params for r in blocks.removals))
    plain = problem_of(blocks, impacts)
    by_draw = {select(budgeted(blocks, problem_of(blocks, draw), cap), "exact").chosen for draw in draws}
    first = select(budgeted(blocks, plain, cap), "exact").chosen
    for favourite in by_draw:
        made = []

        def harm(sets, made=made, favourite=favourite):
            made.extend(sets)
            return np.array([0.0 if some == favourite else 1.0 for some in sets])

        problem = replace(plain, harm=harm, resampled=draws)
        selection = select(budgeted(blocks, problem, cap))
        assert (selection.strategy, selection.chosen) == ("resampled", favourite)
        assert len(made) == len(set(made)), "no set is made twice"
        others = set(made) - by_draw - {first}
        assert others <= set(in_reach(blocks, plain, cap)), "the next by the sum of impacts"
        assert len(others) <= FIRST[0] + ROUNDS * NEXT[0]


def test_the_sets_that_come_next_by_the_sum_are_made_too(blocks):
    impacts, _, _ = world(blocks, 0)
    cap = int(0.5 * sum(r.num_params for r in blocks.removals))
    plain = problem_of(blocks, impacts)
    order = sorted(in_reach(blocks, plain, cap), key=lambda some: impacts[list(some)].sum())
    maximal = [some for place, some in enumerate(order) if not any(set(a) < set(some) for a in order[:place])]
    favourite = maximal[3]
    problem = replace(plain, harm=lambda sets: np.array([float(some != favourite) for some in sets]))
    assert select(budgeted(blocks, problem, cap), "resampled").chosen == favourite


@pytest.mark.parametrize("seed", range(4))
def test_what_greedy_makes_is_counted_without_making_it(blocks, seed):
    impacts, _, harm = world(blocks, seed, strength=0.0)
    for share in CAPS:
        made: list[tuple[int, ...]] = []

        def counting(sets, made=made, harm=harm):
            made.extend(sets)
            return harm(sets)

        cap = int(share * sum(r.num_params for r in blocks.removals))
        problem = budgeted(blocks, replace(problem_of(blocks, impacts), harm=counting), cap)
        select(problem, "greedy")
        assert sets_of_greedy(Search(problem)) == len(made)


def looks(blocks, seed, cap, effort):
    """What is chosen where pairs count for much, and how many looks it took."""
    impacts, _, harm = world(blocks, seed, strength=0.6)
    made: list[tuple[int, ...]] = []

    def counting(sets):
        made.extend(sets)
        return harm(sets)

    problem = replace(problem_of(blocks, impacts), harm=harm, first_look=counting, has_data=True, effort=effort)
    chosen = select(budgeted(blocks, problem, cap), "resampled").chosen
    return harm([chosen])[0], len(made)


def test_where_greedy_would_take_far_more_the_search_goes_on_and_finds_better(blocks):
    cap = int(0.5 * sum(r.num_params for r in blocks.removals))
    once = [looks(blocks, seed, cap, None) for seed in range(3)]
    deep = [looks(blocks, seed, cap, Effort(100, 0.25, 0.0)) for seed in range(3)]
    assert all(num <= sum(FIRST) + ROUNDS * sum(NEXT) for _, num in once)
    assert all(num <= sum(FIRST) + DEEP * (sum(NEXT) + BESIDE) for _, num in deep)
    assert np.mean([harm for harm, _ in deep]) < np.mean([harm for harm, _ in once])


def test_deeper_search_stays_within_a_tenth_of_what_greedy_takes(blocks):
    cap = int(0.5 * sum(r.num_params for r in blocks.removals))
    impacts, _, harm = world(blocks, 0, strength=0.6)
    greedy = sets_of_greedy(Search(budgeted(blocks, replace(problem_of(blocks, impacts), harm=harm), cap)))
    usual = looks(blocks, 0, cap, None)[1]
    for num_batches in (1, 8, 16, 64):
        effort = Effort(num_batches, 0.25, 0.02 * num_batches * greedy)
        allowed = SHARE * num_batches * greedy - effort.spent
        num = looks(blocks, 0, cap, effort)[1]
        assert num <= usual or 0.25 * num + Race(final=min(4, num_batches)).calls(0.25) <= allowed
    assert looks(blocks, 0, cap, Effort(64, 0.25, 64.0 * greedy))[1] == usual


@pytest.mark.parametrize("noise", [0.05, 0.8])
def test_a_race_lasts_as_long_as_there_are_calls_for_it(blocks, noise):
    problem = replace(problem_of(blocks, [0.5] * 8), effort=Effort(8, 0.25, 0.0), noise=noise)
    races = [race(Search(budgeted(blocks, problem, 400)), left) for left in (0.0, 25.0, 35.0, 80.0)]
    assert races[0] == Race()
    assert all(one.calls(0.25) <= left for one, left in zip(races[1:], (25.0, 35.0, 80.0), strict=True))
    longer = [one.first if noise > 0.5 else one.num for one in races]
    assert longer == sorted(longer)
    assert longer[-1] > longer[0]
    assert races[-1].final == 8


def test_recurrence_is_the_share_of_draws_that_choose_a_removal(blocks):
    even, odd = np.array([0.1, 1.0] * 4), np.array([1.0, 0.1] * 4)
    draws = np.stack([even, even, even, odd, even])
    cap = sum(r.num_params for r in blocks.removals[6:])
    problem = replace(problem_of(blocks, even), resampled=draws)
    selection = select(budgeted(blocks, problem, cap), "exact")
    again = [select(budgeted(blocks, problem_of(blocks, draw), cap), "exact").chosen for draw in draws]
    # The bounds on the size are those of the first choice, which all draws share.
    assert selection.recurrence == pytest.approx([sum(i in some for some in again) / 5 for i in selection.chosen])


# ---- what is asked of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["greedy", "evolution"])
def test_strategies_that_measure_say_what_they_lack(blocks, strategy):
    problem = problem_of(blocks, [0.5] * 8)
    with pytest.raises(BudgetError, match=f"strategy '{strategy}' makes removals and measures them.*calibration="):
        select(budgeted(blocks, problem, 400), strategy)


def test_auto_is_exact_without_anything_to_measure_or_draw(blocks):
    assert select(budgeted(blocks, problem_of(blocks, [0.5] * 8), 400)).strategy == "exact"


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(linear() for _ in range(5))

    def forward(self, x):
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x


@pytest.fixture(scope="module")
def branches():
    model = randomised(nn.Sequential(linear(), Branches(), linear()))
    return UniversalLayerPruner(model, calibration=BATCHES)


@pytest.mark.parametrize("strategy", ["exact", "quadratic", "greedy", "evolution", "resampled"])
def test_on_a_real_net_each_strategy_keeps_the_cap_and_says_what_it_is(branches, strategy):
    plan = branches.plan(max_param_reduction=0.35, strategy=strategy)
    assert plan.strategy == strategy
    assert 0.2 < plan.reduction <= 0.35
    assert sum(p.numel() for p in plan.apply(branches._original).parameters()) == plan.num_params_after


def test_what_greedy_and_evolution_choose_harms_no_more_than_the_sum_of_impacts_would_have(branches):
    harms = {s: branches.plan(max_param_reduction=0.35, strategy=s).impact_together for s in ("exact", "evolution")}
    assert harms["evolution"] <= harms["exact"]


@pytest.mark.parametrize("strategy", ["auto", "evolution", "greedy"])
def test_the_same_model_data_and_seed_give_the_same_plan_byte_for_byte(strategy):
    texts = {
        UniversalLayerPruner(
            randomised(nn.Sequential(linear(), Branches(), linear())), calibration=BATCHES, seed=3, criterion=criterion
        )
        .plan(max_param_reduction=0.35, strategy=strategy)
        .to_json()
        for criterion in ("output_change", "output_change")
    }
    assert len(texts) == 1


# ---- frontier and intervals ------------------------------------------------------------------------------------------


def test_the_frontier_is_the_least_impact_for_every_size():
    blocks = independent(*WIDTHS[:6])
    draw = random.Random(4)
    problem = problem_of(blocks, [draw.random() for _ in blocks.removals])
    points = frontier(problem, params_of(blocks, 0).pieces)
    valid = every_valid_set(blocks, problem)
    assert len(points) >= 6
    for point in points:
        assert point.impact == pytest.approx(min(i for s, i in valid.values() if s >= point.size), rel=1e-3)
    assert points[-1].size == max(size for size, _ in valid.values())


def test_a_plan_holds_the_frontier_in_shares_and_ends_where_nothing_more_can_go(branches):
    points = branches.plan(max_param_reduction=0.2).frontier
    assert [p.reduction for p in points] == sorted(p.reduction for p in points)
    assert points[-1].reduction == pytest.approx(branches.plan(max_param_reduction=0.99).reduction)
    assert all(b.impact >= a.impact for a, b in pairwise(points))


def test_intervals_hold_the_impact_and_narrow_with_more_batches():
    model = randomised(nn.Sequential(linear(), Branches(), linear()))
    widths = []
    for num in (4, 40):
        batches = [rows(6, seed=seed) for seed in range(num)]  # all are looked at: the shortlist stops where it may
        pruner = UniversalLayerPruner(model, calibration=batches, criterion="ablation")
        plan = pruner.plan(max_param_reduction=0.35)
        for removal in plan.removals:
            low, high = removal.impact_interval
            assert low <= removal.impact <= high
            assert 0 <= removal.recurrence <= 1
        widths.append(np.mean([(b - a) for i in range(5) for a, b in [pruner._planner.interval(i)]]))
    assert widths[1] < widths[0]


def test_one_batch_gives_no_intervals():
    model = randomised(nn.Sequential(linear(), Branches(), linear()))
    plan = UniversalLayerPruner(model, calibration=BATCHES[:1]).plan(max_param_reduction=0.35)
    assert all(r.impact_interval is None and r.recurrence is None for r in plan.removals)
    assert any("one calibration batch gives no intervals" in note for note in plan.notes)


def test_choices_that_other_draws_would_not_make_are_called_in_doubt(blocks):
    even, odd = np.array([0.1, 1.0] * 4), np.array([1.0, 0.1] * 4)
    problem = replace(problem_of(blocks, even), resampled=np.stack([odd] * 5))
    selection = select(budgeted(blocks, problem, sum(r.num_params for r in blocks.removals[6:])), "exact")
    assert min(selection.recurrence) < 0.5
    doubts = doubtful_choices(selection)
    assert len(doubts) == 1
    assert "selected by fewer than half of the draws" in doubts[0]
    assert "too few" in doubts[0]
    made = doubtful_choices(replace(selection, strategy="resampled"))
    assert len(made) == 1
    assert "because the measured set was better" in made[0]
    assert "too few" not in made[0], "draws do not tell of made sets"


def test_unknown_impacts_count_as_worse_than_known_ones():
    assert with_unknown(np.array([0.5, math.nan, math.inf, 2.0])).tolist() == [0.5, 20.0, 20.0, 2.0]
    assert size_of(independent(4), select(budgeted(independent(4), problem_of(independent(4), [math.nan]), 100))) > 0
