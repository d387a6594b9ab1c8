"""Corrected impacts: sets that were made count the more, the worse sums predict them and the less noise there is."""

import numpy as np
import pytest

from layerprune.select.strategies.impact_calibration import calibrate_impacts

IMPACTS = np.array([1.0, 1.0, 1.0, 1.0])
SETS = [(0, 1), (0, 2), (1, 2), (2, 3)]


def test_sums_that_predict_well_stay_as_they_are():
    found = calibrate_impacts(IMPACTS, SETS, np.array([2.0, 2.1, 1.9, 2.0]), noise=0.2)
    assert not found.is_needed
    assert found.costs == pytest.approx(IMPACTS, abs=0.01)
    assert found.trust < 0.2


def test_what_all_sets_have_in_common_says_nothing_of_any():
    found = calibrate_impacts(IMPACTS, SETS, np.full(4, 20.0), noise=0.0)
    assert not found.is_needed
    assert found.costs == pytest.approx(10 * IMPACTS)


def test_the_removal_that_makes_sets_worse_than_their_sums_is_found():
    found = calibrate_impacts(IMPACTS, SETS, np.array([6.0, 6.0, 2.0, 2.0]), noise=0.05)
    assert found.is_needed
    assert found.trust > 0.9
    assert found.costs.argmax() == 0
    assert found.costs[0] > 1.5 * found.costs[1:].max()


def test_noise_that_is_as_large_explains_it_as_well():
    harms = np.array([6.0, 6.0, 2.0, 2.0])
    sure, unsure = (calibrate_impacts(IMPACTS, SETS, harms, noise) for noise in (0.05, 1.0))
    assert not unsure.is_needed
    assert unsure.trust < sure.trust
    assert np.ptp(unsure.costs) < 0.1 * np.ptp(sure.costs)
    assert unsure.of(SETS, harms) == pytest.approx([unsure.costs[list(some)].sum() for some in SETS], rel=0.02)


def test_least_squares_with_a_prior_by_hand():
    # One set of one removal, no factor in common: its harm 3 in place of 1 is a factor, and nothing is left to correct.
    alone = calibrate_impacts(np.array([1.0, 5.0]), [(0,)], np.array([3.0]), noise=0.0)
    assert alone.costs == pytest.approx([3.0, 15.0])
    # Two sets, 1 and 3 where sums say 2 each: the median of the logarithms is √3 / 2, so sums are √3.
    found = calibrate_impacts(np.array([1.0, 1.0, 1.0, 1.0]), [(0, 1), (2, 3)], np.array([1.0, 3.0]), noise=0.0)
    missing = np.array([1.0, 3.0]) - np.sqrt(3)
    scale = np.array([np.sqrt(3), 3.0]).clip(2.0)
    own = ((missing / scale) ** 2).mean() / 2
    each = own * 2.0**2 / 2
    shift = each * missing / (2 * each + own * scale**2)
    assert found.costs == pytest.approx(np.sqrt(3) / 2 + shift[[0, 0, 1, 1]])


def test_sets_of_which_nothing_is_known_and_gains_do_no_harm():
    unknown = calibrate_impacts(IMPACTS, SETS, np.full(4, np.nan), noise=0.1)
    assert (unknown.costs == IMPACTS).all()
    assert not unknown.is_needed
    gains = calibrate_impacts(-IMPACTS, SETS, np.array([-2.0, np.nan, 1.0, 0.0]), noise=0.1)
    assert np.isfinite(gains.costs).all()
