"""Swaps: better sets from good ones, checked against trying every subset."""

from itertools import chain, combinations

import numpy as np
import pytest

from layerprune.select import Limit
from layerprune.select.constraints import Exclusion
from layerprune.select.local_search import LocalSearch


def random_problem(seed, *, pairs):
    """Nine removals, of which some take parameters together with others, and some exclude each other."""
    rng = np.random.default_rng(seed)
    bundles = {(i,): float(rng.integers(1, 20)) for i in range(9)}
    for _ in range(6):
        bundles[tuple(sorted(rng.choice(9, size=int(rng.integers(2, 4)), replace=False).tolist()))] = 7.0
    banned = [tuple(sorted(rng.choice(9, size=2, replace=False).tolist())) for _ in range(4)]
    costs = rng.uniform(0.1, 1.0, 9)
    if pairs:
        beside = rng.normal(0, 0.05, (9, 9))
        costs = np.diag(costs) + beside + beside.T
    return costs, bundles, banned


def valid_sets(costs, bundles, banned, low, high):
    """(cost, set) of every valid set, computed without the class."""
    square = np.diag(costs) if costs.ndim == 1 else costs
    for some in chain.from_iterable(combinations(range(9), n) for n in range(1, 10)):
        size = sum(s for takers, s in bundles.items() if set(takers) & set(some))
        if low <= size <= high and not any(set(bad) <= set(some) for bad in banned):
            yield float(square[np.ix_(some, some)].sum()), some


@pytest.mark.parametrize("pairs", [False, True])
def test_swaps_end_in_a_valid_set_that_is_mostly_the_best(pairs):
    best = 0
    for seed in range(40):
        costs, bundles, banned = random_problem(seed, pairs=pairs)
        low, high = 0.35 * sum(bundles.values()), 0.5 * sum(bundles.values())
        every = sorted(valid_sets(costs, bundles, banned, low, high))
        start = every[-1]
        swaps = LocalSearch(costs, [Limit(bundles, low, high)], [Exclusion.of(bad) for bad in banned])
        found = tuple(swaps.improve(start[1]))
        at = dict((some, cost) for cost, some in every)
        assert found in at, "not a valid set"
        assert swaps.cost(found) == pytest.approx(at[found])
        assert at[found] <= start[0]
        best += at[found] <= every[0][0] + 1e-9
    assert best >= 36


def test_a_set_costs_the_block_that_it_spans_and_takes_shared_pieces_once():
    swaps = LocalSearch(np.array([[1.0, 0.25], [0.25, 2.0]]), [Limit({(0,): 3.0, (0, 1): 5.0}, low=6, high=7.5)], [])
    assert swaps.cost((0, 1)) == pytest.approx(3.5)
    assert [swaps.fits(some) for some in ((0,), (1,), (0, 1), ())] == [False, False, False, False]
    assert LocalSearch(np.array([1.0, 2.0]), [Limit({(0,): 3.0, (0, 1): 5.0}, low=5, high=5)], []).fits((1,))


def test_a_set_without_better_neighbours_stays():
    limits = [Limit({(0,): 5.0, (1,): 5.0}, 5, 10)]
    swaps = LocalSearch(np.array([1.0, 2.0]), limits, [Exclusion.of((0, 1))])
    assert swaps.improve((0,)) == [0]
    assert swaps.improve((1,)) == [0]


def test_of_groups_that_exclude_each_other_not_every_one_may_have_a_member():
    limits = [Limit({(i,): 1.0 for i in range(4)}, 1, 4)]
    swaps = LocalSearch(np.zeros(4), limits, [Exclusion(((0, 1), (2, 3)))])
    assert swaps.entries((0,))[0].tolist() == [False, True, False, False]
    assert swaps.entries((3,))[0].tolist() == [False, False, True, False]


def test_of_a_family_too_many_may_not_join_where_one_of_the_other_lists_is_chosen():
    limits = [Limit({(i,): 1.0 for i in range(5)}, 1, 5)]
    swaps = LocalSearch(np.zeros(5), limits, [Exclusion(((4,),), ((0, 1), (2,), (3,)), 2)])
    assert swaps.entries((0, 4))[0].tolist() == [False, True, False, False, False]
    assert swaps.entries((0, 2))[0].tolist() == [False, True, False, True, False]
    assert swaps.entries((2,))[0].tolist() == [True, True, False, True, True]


def test_several_limits_hold_at_once():
    limits = [Limit({(0,): 4.0, (1,): 4.0, (2,): 1.0}, 4, 5), Limit({(0,): 9.0, (1,): 2.0, (2,): 2.0}, 0, 4)]
    assert LocalSearch(np.array([1.0, 2.0, 1.0]), limits, []).improve((1, 2)) == [1]
