"""The default with data: all removals estimated, the promising ones made, on as many batches as it takes; intervals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from layerprune import UniversalLayerPruner
from layerprune.capture import read_calibration
from layerprune.impact import (
    ImpactScores,
    ScoringContext,
    ablate,
    all_of_them,
    counted,
    first_only,
    halving,
    handicapped,
    shortlist,
    winner,
)
from layerprune.impact.ablation import score_ablation
from layerprune.impact.racing import contenders
from models.nets import Net, linear, randomised, rows

NAMES = ("a", "b", "c", "d", "e")
BATCHES = [rows(6, seed=seed).double() for seed in range(1, 7)]


def scene_of(batches, seed=0):
    def forward(net, x):
        x = net.stem(x)
        for name in NAMES:
            x = x + torch.tanh(getattr(net, name)(x))
        return net.head(x)

    model = randomised(Net(forward, **{name: linear() for name in ("stem", *NAMES, "head")})).double()
    with torch.no_grad():
        for number, name in enumerate(NAMES):
            for p in getattr(model, name).parameters():
                p.mul_(0.02 * 2.5**number)
    pruner = UniversalLayerPruner(model, example_inputs=batches[0])
    return ScoringContext(
        model=model, graph=pruner.graph, removals=pruner.removals, batches=read_calibration(batches, model), seed=seed
    )


def edits_of(scene):
    return [removal.edits for removal in scene.removals]


def test_batches_that_agree_settle_an_impact_after_two():
    scene = scene_of([BATCHES[0]] * 6)
    found = ablate(scene, edits_of(scene), rule=contenders(0.2, fewest=9))
    assert ((found.size != 0).sum(0) == 2).all()
    assert found.impacts == pytest.approx(score_ablation(scene).impacts)


def test_batches_that_do_not_agree_are_all_looked_at():
    scene = scene_of(BATCHES)
    found = ablate(scene, edits_of(scene), rule=contenders(1e-6, fewest=9))
    assert found.change.tolist() == score_ablation(scene).change.tolist()


def test_the_batches_come_in_an_order_of_the_seed_and_each_is_in_its_row():
    scene = scene_of(BATCHES)
    whole = score_ablation(scene).change
    chosen = []
    for seed in range(8):
        found = ablate(replace(scene, seed=seed), edits_of(scene), rule=contenders(1e6, fewest=9))
        used = (found.size[:, 0] != 0).nonzero()[0]
        assert len(used) == 2
        assert found.change[used].tolist() == whole[used].tolist()
        chosen.append(tuple(used))
    assert len(set(chosen)) > 1


def entries(rule, rows):
    """Which sets go on after the first rows of a table of impacts; sizes are 1 where there is an impact."""
    table = np.array(rows, dtype=float)
    return rule(np.nan_to_num(table), np.isfinite(table).astype(float), len(rows)).tolist()


def test_after_the_first_batch_the_half_of_least_impact_goes_on():
    rule = contenders(0.2, fewest=1)
    assert rule(np.zeros((0, 5)), np.zeros((0, 5)), 0.0).all()
    assert entries(rule, [[3, 1, 5, 2, 4]]) == [True, True, False, True, False]
    assert entries(contenders(0.2, fewest=4), [[3, 1, 5, 2, 4]]) == [True, True, False, True, True]


def test_what_is_far_below_the_others_needs_no_precision_of_its_own():
    first, second = [0.1, 10.0, 90.0, 99.0], [0.3, 10.1, np.nan, np.nan]
    assert entries(contenders(0.2, 2), [first, second]) == [False, False, False, False]
    assert entries(contenders(0.2, 2), [first, [0.1, 30.0, np.nan, np.nan]]) == [False, True, False, False]


def test_a_race_halves_the_field_as_its_rounds_double_and_ends_with_one():
    nan = np.nan
    rows = [[8, 7, 6, 5, 4, 3, 2, 1]]
    assert entries(halving(), rows) == [True] * 8
    rows.append([8, 7, 6, 5, 4, 3, 2, 1])
    assert entries(halving(), rows) == [False] * 4 + [True] * 4
    rows.append([nan] * 4 + [0, 9, 9, 9])  # the best so far are now the fifth and the last
    assert entries(halving(), rows) == [False] * 4 + [True] * 4
    rows.append([nan] * 4 + [0, 9, 9, 0])
    assert entries(halving(), rows) == [False] * 8  # these were four batches
    table = np.array(rows, dtype=float)
    short = rows_of(table)
    assert halving()(*short, 1.0).tolist() == [False] * 4 + [True, False, False, True]  # and these parts of one
    assert winner(np.nanmean(table, axis=0), np.isfinite(table).sum(0)) == 4


def test_a_race_may_begin_to_halve_later_and_end_on_more():
    rule = halving(first=4, final=6)
    rows = [[4, 3, 2, 1]] * 3
    assert entries(rule, rows) == [True] * 4
    rows.append([4, 3, 2, 1])
    assert entries(rule, rows) == [False, False, True, True]
    rows.append([np.nan, np.nan, 2, 1])
    assert entries(rule, rows) == [False, False, True, True]
    rows.append([np.nan, np.nan, 2, 1])
    assert entries(rule, rows) == [False] * 4


def rows_of(table):
    return np.nan_to_num(table), np.isfinite(table).astype(float)


def test_a_handicap_counts_in_a_race():
    table = rows_of(np.array([[1.0, 1.5, 2.0, 9.0], [1.0, 1.5, 2.0, 9.0]]))
    assert halving()(*table, 2.0).tolist() == [True, True, False, False]
    assert counted(np.array([2.0, -2.0]), np.array([2.0, 2.0])).tolist() == [4.0, -1.0]
    assert handicapped(halving(), np.array([2.5, 1.0, 1.0, 1.0]))(*table, 2.0).tolist() == [False, True, True, False]


def test_a_first_look_is_one_round():
    assert first_only(np.zeros((0, 3)), np.zeros((0, 3)), 0.0).tolist() == [True] * 3
    assert first_only(np.ones((1, 3)), np.ones((1, 3)), 0.25).tolist() == [False] * 3


def test_after_twelve_rounds_no_removal_is_made_again():
    rng = np.random.default_rng(0)
    table = rows_of(rng.uniform(0.01, 1.0, (12, 4)))
    rule = contenders(1e-9, fewest=9)
    assert rule(table[0][:11], table[1][:11], 11.0).all()
    assert not rule(*table, 12.0).any()


def test_a_set_whose_output_is_no_number_drops_out_of_a_race():
    change = np.array([[np.nan, 2.0, 1.0, 3.0]])
    assert halving()(change, np.ones_like(change), 1.0).tolist() == [False, True, True, True]


@pytest.mark.parametrize("longest", [2, 64])
def test_progress_comes_to_its_end(monkeypatch, longest):
    monkeypatch.setattr(shortlist, "LONGEST", longest)
    told = []
    scene = replace(scene_of([BATCHES[0]] * 6), progress=lambda done, total: told.append((done, total)))
    shortlist.score_shortlist(scene)
    assert told == sorted(told)
    assert len({total for _, total in told}) == 1
    assert told[-1][0] == told[-1][1]


def test_of_many_removals_the_least_harmful_are_measured_and_the_rest_estimated(monkeypatch):
    monkeypatch.setattr(shortlist, "LONGEST", 2)
    monkeypatch.setattr(shortlist, "contenders", lambda precision: all_of_them)
    scene = scene_of(BATCHES)
    truth = score_ablation(scene).impacts
    found = shortlist.score_shortlist(scene)
    measured = {i for i in range(len(truth)) if found.impacts[i] == pytest.approx(truth[i])}
    assert measured >= set(np.argsort(truth)[:2])
    assert f"{len(measured)} of {len(truth)} removals were measured" in found.notes[-1]
    assert np.argsort(found.impacts).tolist() == np.argsort(truth).tolist()


def test_estimates_are_brought_to_the_scale_of_the_measurements_by_a_power():
    estimates = np.array([0.01 * 1.5**k for k in range(20)])
    truth = 3.0 * estimates**1.5
    assert shortlist._brought(estimates, estimates[:10], truth[:10]) == pytest.approx(truth)
    few = shortlist._brought(estimates, estimates[:3], 2.0 * estimates[:3])
    assert few == pytest.approx(2.0 * estimates)


def test_what_was_saved_is_said_and_the_pruner_plans_with_it(monkeypatch):
    monkeypatch.setattr(shortlist, "contenders", lambda precision: contenders(precision, fewest=1))
    scene = scene_of(BATCHES)
    pruner = UniversalLayerPruner(scene.model, calibration=[BATCHES[0]] * 6)
    num = len(scene.removals)
    average = 1 + math.ceil(num / 2) / num  # the better half on a second batch, which agrees
    assert any(f"{average:.1f} on average" in note for note in pruner.notes)
    assert pruner.impact_unit == "squared relative L2 change of the output, by ablation, on the calibration data"


# ---- intervals --------------------------------------------------------------------------------------------------


def test_what_was_measured_on_one_batch_has_no_interval(monkeypatch):
    monkeypatch.setattr(shortlist, "contenders", lambda precision: contenders(precision, fewest=1))
    scene = scene_of(BATCHES)
    pruner = UniversalLayerPruner(scene.model, calibration=BATCHES)
    once = pruner._scored.evidence.num_batches == 1
    assert 0 < once.sum() < len(once)
    for number, alone in enumerate(once):
        assert (pruner._planner.interval(number) is None) == bool(alone)


def test_an_interval_holds_the_impact_and_one_batch_gives_none():
    scene = scene_of(BATCHES)
    found = score_ablation(scene)
    draws = found.resampled(0)
    assert ((draws.min(0) <= found.impacts) & (found.impacts <= draws.max(0))).all()
    assert (draws == found.resampled(0)).all()
    assert score_ablation(scene_of(BATCHES[:1])).resampled(0).shape[0] == 0


def test_a_removal_measured_on_some_batches_draws_from_these():
    change = np.array([[1.0, 0.0], [2.0, 5.0], [3.0, 0.0], [4.0, 7.0]])
    size = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    found = ImpactScores(change=change, size=size, power=1.0, unit="")
    assert found.impacts.tolist() == [2.5, 6.0]
    draws = found.resampled(0)
    assert set(draws[:, 1]) == {5.0, 6.0, 7.0}
    assert np.mean(draws[:, 1] == 6.0) == pytest.approx(0.5, abs=0.12)
    assert draws[:, 0].min() >= 1.0
    assert draws[:, 0].std() == pytest.approx(np.sqrt(1.25 / 4), rel=0.2)
