"""Swaps: better sets from good ones, checked against trying every subset."""

from itertools import chain, combinations

import numpy as np
import pytest

from layerprune.culprits import Ban
from layerprune.swaps import Swaps


def random_problem(seed, *, pairs):
    """Nine removals, of which some take parameters together with others, and some exclude each other."""
    rng = np.random.default_rng(seed)
    bundles = {(i,): float(rng.integers(1, 20)) for i in range(9)}
    for _ in range(6):
        bundles[tuple(sorted(rng.choice(9, size=int(rng.integers(2, 4)), replace=False).tolist()))] = 7.0
    banned = [[rng.choice(9, size=1), rng.choice(9, size=1)] for _ in range(4)]
    banned += [[rng.choice(9, size=2, replace=False) for _ in range(3)] for _ in range(2)]  # lists may overlap
    banned = [Ban(tuple(tuple(sorted(each.tolist())) for each in ban)) for ban in banned]
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
        if low <= size <= high and not any(all(set(each) & set(some) for each in ban.alternatives) for ban in banned):
            yield float(square[np.ix_(some, some)].sum()), some


@pytest.mark.parametrize("pairs", [False, True])
def test_swaps_end_in_a_valid_set_that_is_mostly_the_best(pairs):
    best = 0
    for seed in range(40):
        costs, bundles, banned = random_problem(seed, pairs=pairs)
        low, high = 0.35 * sum(bundles.values()), 0.5 * sum(bundles.values())
        every = sorted(valid_sets(costs, bundles, banned, low, high))
        start = every[-1]
        swaps = Swaps(costs, bundles, banned)
        found = tuple(swaps.improve(start[1], low, high))
        at = dict((some, cost) for cost, some in every)
        assert found in at, "not a valid set"
        assert swaps.cost(found) == pytest.approx(at[found])
        assert at[found] <= start[0]
        best += at[found] <= every[0][0] + 1e-9
    assert best >= 32


def test_costs_and_sizes_are_those_of_the_set():
    swaps = Swaps(np.array([[1.0, 0.25], [0.25, 2.0]]), {(0,): 3.0, (0, 1): 5.0}, [])
    assert swaps.cost((0, 1)) == pytest.approx(3.5)
    assert (swaps.size((0,)), swaps.size((1,)), swaps.size((0, 1)), swaps.size(())) == (8, 5, 8, 0)


def test_a_set_without_better_neighbours_stays():
    swaps = Swaps(np.array([1.0, 2.0]), {(0,): 5.0, (1,): 5.0}, [Ban.of((0, 1))])
    assert swaps.improve((0,), 5, 10) == [0]
    assert swaps.improve((1,), 5, 10) == [0]
