"""The least cost is found although the solver takes differences below a millionth of the largest cost for none."""

from itertools import combinations

import numpy as np
import pytest

from layerprune.select import Limit, Milp


def brute(costs: np.ndarray, sizes: np.ndarray, low: float) -> float:
    sets = (list(some) for num in range(len(costs) + 1) for some in combinations(range(len(costs)), num))
    return min(float(costs[some].sum()) for some in sets if sizes[some].sum() >= low)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("spread", [0, 8, 16])
def test_costs_of_any_spread_are_minimised(seed, spread):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 20, 9).astype(float)
    costs = 10.0 ** rng.uniform(-spread / 2, spread / 2, 9)
    low = float(rng.uniform(0.1, 0.9) * sizes.sum())
    chosen = Milp(9).least(costs, [Limit({(i,): size for i, size in enumerate(sizes)}, low=low)], [])
    assert sizes[chosen].sum() >= low - 1e-9
    assert costs[chosen].sum() == pytest.approx(brute(costs, sizes, low), rel=2e-4)


def test_one_huge_cost_does_not_hide_the_others():
    """As in a network whose fresh branches are scaled by 1e-6: a set of cost 7 was given where one of 3e-7 does."""
    costs = np.array([6.7e7, 1.0, 1.1, 1.2, 2e-7, 3e-7, 1e-7])
    sizes = np.array([100.0, 4, 4, 4, 5, 5, 5])
    pieces = {(i,): size for i, size in enumerate(sizes)}
    assert sorted(Milp(7).least(costs, [Limit(pieces, low=9)], [])) == [4, 6]


def test_costs_below_zero_are_no_bound():
    costs = np.array([-5.0, 4.0, 1e9, 1e-9])
    pieces = {(i,): 1.0 for i in range(4)}
    assert sorted(Milp(4).least(costs, [Limit(pieces, low=3)], [])) == [0, 1, 3]


@pytest.mark.parametrize("seed", range(25))
def test_costs_of_either_sign_are_minimised(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 20, 8).astype(float)
    costs = 10.0 ** rng.uniform(-6, 1, 8) * rng.choice([-1.0, 1.0], 8)
    low = float(rng.uniform(0.1, 0.9) * sizes.sum())
    chosen = Milp(8).least(costs, [Limit({(i,): size for i, size in enumerate(sizes)}, low=low)], [])
    assert sizes[chosen].sum() >= low - 1e-9
    assert costs[chosen].sum() == pytest.approx(brute(costs, sizes, low), rel=2e-4, abs=1e-6 * np.abs(costs).max())


def test_a_cost_far_below_zero_ends_the_search_for_finer_ones():
    costs = np.array([-5.0, 1e-9, 2e-9])
    pieces = {(i,): 1.0 for i in range(3)}
    chosen = Milp(3).least(costs, [Limit(pieces, low=1)], [])
    assert costs[chosen].sum() == pytest.approx(-5.0)
