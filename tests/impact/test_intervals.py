"""The interval of an impact: from samples, or from batches where these differ more than samples would."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from layerprune import UniversalLayerPruner
from layerprune.fidelity import Divergence
from layerprune.impact import ImpactScores, impact_intervals
from layerprune.impact.intervals import interval
from layerprune.impact.scores import Units
from models.nets import Damped, linear, randomised, rows

BATCHES = [rows(16, seed=seed) for seed in range(4)]


def net():
    return randomised(torch.nn.Sequential(linear(), Damped(), linear()))


# ---- the bounds ------------------------------------------------------------------------------------------------------


def test_of_samples_that_are_alike_it_is_students_on_the_scale_of_the_logarithm():
    """Changes 1 and 3 in turn: the mean is 2, its error 2 / sqrt(8 * 7), and all eight make up the spread."""
    change, batches = np.array([1.0, 3.0] * 4), np.repeat([0, 1], 4)
    reach = student_t.ppf(0.975, 7) * math.sqrt(8 / 7 / 8) / 2
    assert interval(change, np.ones(8), batches) == pytest.approx((2 * math.exp(-reach), 2 * math.exp(reach)))


def test_where_batches_differ_more_than_their_samples_they_are_the_units():
    """Four batches of 100 samples that are all alike in each: four numbers, not 400."""
    means = np.array([1.0, 3.0, 1.0, 3.0])
    change, batches = np.repeat(means, 100), np.repeat(range(4), 100)
    reach = student_t.ppf(0.975, 3) * math.sqrt(4 / 3 / 4) / 2
    assert interval(change, np.ones(400), batches) == pytest.approx((2 * math.exp(-reach), 2 * math.exp(reach)))


def test_one_sample_that_makes_up_the_spread_counts_as_few():
    wide = np.r_[np.full(31, 0.01), 5.0]
    low, high = interval(wide, np.ones(32), np.repeat(range(4), 8))
    assert low < 0.01
    assert high > 5


def test_sizes_weigh():
    """A ratio of sums: twice as much of a sample of twice the size changes nothing."""
    change, size, batches = np.array([1.0, 2, 2, 3]), np.array([1.0, 1, 1, 1]), np.array([0, 0, 1, 1])
    same = interval(np.r_[change, change], np.r_[size, size], np.r_[batches, batches])
    scaled = interval(2 * np.r_[change, change], 2 * np.r_[size, size], np.r_[batches, batches])
    assert same == pytest.approx(scaled)


def test_a_gain_has_an_interval_too_and_one_batch_or_what_is_no_number_has_none():
    low, high = interval(np.array([-1.0, -3.0] * 4), np.ones(8), np.repeat([0, 1], 4))
    assert (low + high) / 2 == pytest.approx(-2)
    assert all(map(math.isnan, interval(np.ones(4), np.ones(4), np.zeros(4))))
    assert all(map(math.isnan, interval(np.array([1.0, math.nan]), np.ones(2), np.array([0, 1]))))


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_it_holds_the_truth_in_nine_of_ten_draws_and_the_percentiles_over_batches_do_not(shared):
    """Lognormal harms, by samples alone or with a part that all samples of a batch share."""
    rng = np.random.default_rng(0)
    num_batches, num, draws, truth = 4, 16, 400, math.exp(0.5 * (1 + shared**2))
    held = before = 0
    batches = np.repeat(range(num_batches), num)
    for _ in range(draws):
        common = np.repeat(rng.normal(0, shared, num_batches), num) if shared else 0.0
        change = np.exp(rng.normal(0, 1, num_batches * num) + common)
        low, high = interval(change, np.ones(len(change)), batches)
        held += low <= truth <= high
        means = change.reshape(num_batches, num).mean(1)
        low, high = np.percentile(means[rng.integers(0, num_batches, (200, num_batches))].mean(1), [2.5, 97.5])
        before += low <= truth <= high
    assert held / draws >= 0.9
    assert before / draws < 0.85


# ---- what it is measured on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["values", "distribution"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_what_samples_change_adds_up_to_what_the_batch_changes(kind, is_masked):
    one, other = rows(24).reshape(3, 4, 8, 2)[..., 0], rows(24, seed=5).reshape(3, 4, 8, 2)[..., 0]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]) if is_masked else None
    harm = Divergence(kind)
    found = harm.by_sample(one, other, mask, 3)
    assert found.shape == (2, 3)
    assert found.sum(1) == pytest.approx(harm.between(one, other, mask))
    alone = harm.by_sample(one, torch.cat([one[:1], other[1:]]), mask, 3)
    assert alone[0, 0] == 0
    assert (alone[0, 1:] > 0).all()
    assert harm.by_sample(one, other, mask, 5).shape == (2, 1), "samples that outputs do not tell apart"


def test_units_are_the_samples_that_a_removal_was_measured_on():
    evidence = UniversalLayerPruner(net(), calibration=BATCHES, criterion="ablation")._scored.evidence
    for number in range(4):
        rows_of = evidence.units.batches == number
        assert rows_of.sum() == 16
        assert evidence.units.change[rows_of].sum(0) == pytest.approx(evidence.change[number])
        assert evidence.units.size[rows_of].sum(0) == pytest.approx(evidence.size[number])


def test_intervals_hold_the_impact_and_are_there_for_every_criterion_that_sees_batches():
    for criterion in ("ablation", "shortlist", "influence", "output_change"):
        pruner = UniversalLayerPruner(net(), calibration=BATCHES, criterion=criterion)
        found = [pruner._planner.interval(number) for number in range(len(pruner.removals))]
        some = [(one, removal.impact) for one, removal in zip(found, pruner.removals, strict=True) if one is not None]
        assert some
        assert all(low < impact < high for (low, high), impact in some)


def test_one_batch_and_what_was_measured_on_one_have_none():
    change = np.array([[1.0, 2.0], [0.0, 3.0]])
    size = np.array([[1.0, 1.0], [0.0, 1.0]])
    units = Units(change, size, np.array([0, 1]))
    found = impact_intervals(ImpactScores(change=change, size=size, power=1.0, unit="", units=units))
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1]).all()
    assert impact_intervals(ImpactScores(change=change[:1], size=size[:1], power=1.0, unit="")) is None
