"""Rounds: batches in parts, where parts tell what the whole does, and nothing lost or counted twice by that."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_shortlist import edits_of, scene_of
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.capture import Batch, read_calibration
from layerprune.fidelity import Divergence
from layerprune.impact import ImpactScores, ablate, ends, first_only
from layerprune.impact.ablation import score_ablation
from layerprune.impact.racing import contenders
from layerprune.impact.subbatches import PARTS, SubBatch, adds_up, cut, fewest_samples, whole
from layerprune.inputs import Inputs
from layerprune.replay import ReusePolicy
from models.nets import rows

BATCHES = [rows(32, seed=seed).double() for seed in range(1, 4)]


def every_round(change, size, num_batches):
    """All sets on all parts: no rule that the library has, as ``all_of_them`` takes batches whole."""
    return np.ones(change.shape[1], dtype=bool)


def batches_of(*sizes):
    return read_calibration([rows(size) for size in sizes], nn.Linear(6, 6))


# ---- the order ----------------------------------------------------------------------------------------------------


def test_rounds_take_a_part_of_each_batch_before_a_second_of_any():
    rounds = cut(whole(batches_of(16, 16, 16), seed=3), 4)
    assert len(rounds) == 3 * PARTS
    firsts = [one.row for one in rounds[:3]]
    assert sorted(firsts) == [0, 1, 2]
    assert [one.row for one in rounds] == firsts * PARTS
    assert all(one.share == 0.25 for one in rounds)
    for row in range(3):
        parts = [one.batch.inputs.args[0] for one in rounds if one.row == row]
        assert torch.equal(torch.cat(parts), batches_of(16, 16, 16)[row].inputs.args[0])


def test_batches_of_few_samples_stay_whole_and_no_part_is_smaller_than_asked_for():
    rounds = cut(whole(batches_of(7, 13, 16), seed=0), 4)
    sizes = {row: sorted(one.batch.num_samples for one in rounds if one.row == row) for row in range(3)}
    assert sizes == {0: [7], 1: [4, 4, 5], 2: [4, 4, 4, 4]}
    assert sum(one.share for one in rounds) == pytest.approx(3)


def test_what_no_samples_can_be_told_of_stays_whole():
    batch = Batch(None, Inputs((torch.zeros(8, 2), torch.zeros(9, 2))))
    assert [one.batch for one in cut(whole([batch], seed=0), 4)] == [batch]


def test_samples_are_cut_out_of_all_that_has_one_row_for_each():
    x, y, table = torch.arange(24.0).reshape(8, 3), torch.arange(8), torch.zeros(3, 3)
    batch = Batch((x, y), Inputs((x,), {"mask": torch.ones(8, 5), "table": table.sum()}))
    part = batch.samples(2, 5)
    assert part is not None
    assert torch.equal(part.inputs.args[0], x[2:5])
    assert part.inputs.kwargs["mask"].shape == (3, 5)
    assert part.inputs.kwargs["table"].shape == ()
    assert torch.equal(part.item[1], torch.tensor([2, 3, 4]))
    assert Batch((x, torch.zeros(9, 9)), Inputs((x,))).samples(2, 5) is None


def test_a_part_has_eight_predictions_or_more_and_two_samples():
    assert [fewest_samples(num) for num in (0.5, 1, 3, 8, 128)] == [8, 8, 3, 2, 2]


# ---- whether parts tell what the whole does --------------------------------------------------------------------------


def test_parts_tell_where_they_are_what_the_whole_ends_with():
    out = torch.randn(8, 3)
    assert ends([out[6:]], [out])
    assert not ends([out[5:7]], [out])
    assert not ends([out[6:].sum()], [out.sum()])
    assert not ends([out], [out])
    assert not ends([], [])
    assert not ends([out[6:], out[6:]], [out])


def test_losses_tell_where_the_whole_has_their_mean():
    assert adds_up([(1.0, 0.25), (3.0, 0.75)], 2.5)
    assert not adds_up([(1.0, 0.25), (3.0, 0.75)], 4.0)  # a sum over the samples
    assert not adds_up([(float("nan"), 0.5), (1.0, 0.5)], 1.0)


def measured_in_parts(scene):
    found = ablate(scene, edits_of(scene), rule=every_round)
    return found, scene.reuse_policy


def test_in_parts_the_divergence_is_that_of_whole_batches():
    scene = scene_of(BATCHES)
    found = ablate(scene, edits_of(scene), Divergence("distribution"), rule=every_round)
    truth = score_ablation(replace(scene, reuse_policy=ReusePolicy()), Divergence("distribution"))
    assert (scene.reuse_policy.fewest, scene.reuse_policy.share) == (8, 0.25)
    assert found.change == pytest.approx(truth.change)
    assert found.size == pytest.approx(truth.size)
    assert (found.looked_at == 1).all()


def test_in_parts_a_relative_change_is_the_mean_of_the_parts():
    scene = scene_of(BATCHES)
    found, _ = measured_in_parts(scene)
    parts = [one.batch for one in cut([SubBatch(row, batch) for row, batch in enumerate(scene.batches)], 8)]
    truth = score_ablation(replace(scene, batches=parts, reuse_policy=ReusePolicy()))
    assert found.change == pytest.approx(truth.change.reshape(PARTS, len(BATCHES), -1).sum(0))
    assert found.size == pytest.approx(truth.size.reshape(PARTS, len(BATCHES), -1).sum(0))


def test_samples_that_know_of_each_other_are_not_torn_apart():
    scene = scene_of(BATCHES)
    plain = scene.model.forward

    def together(x):
        return plain(x) - plain(x).mean(0)

    scene.model.forward = together
    found, reuse_policy = measured_in_parts(scene)
    assert reuse_policy.fewest == 0
    assert found.change.tolist() == score_ablation(scene).change.tolist()


def test_steps_of_a_sequence_are_not_taken_for_samples():
    scene = scene_of(BATCHES)
    plain = scene.model.forward

    def causal(x):
        return plain(x).cumsum(0)  # of the first steps it makes the same without the later ones

    scene.model.forward = causal
    found, reuse_policy = measured_in_parts(scene)
    assert reuse_policy.fewest == 0
    assert found.change.tolist() == score_ablation(scene).change.tolist()


def test_a_last_batch_of_few_samples_does_not_keep_the_others_whole():
    scene = scene_of([*BATCHES, rows(3, seed=4).double()])
    for seed in range(4):  # it comes first for one of them
        each = replace(scene, seed=seed, reuse_policy=ReusePolicy())
        found = ablate(each, edits_of(each), rule=every_round)
        assert each.reuse_policy.fewest == 8
        assert (found.looked_at == 1).all()


def test_a_model_that_takes_no_other_batch_size_gets_whole_batches():
    scene = scene_of(BATCHES)
    plain = scene.model.forward

    def at_once(x):
        return plain(x.reshape(32, -1))

    scene.model.forward = at_once
    found, reuse_policy = measured_in_parts(scene)
    assert reuse_policy.fewest == 0
    assert found.change.tolist() == score_ablation(scene).change.tolist()


@pytest.mark.parametrize(("reduction", "can_be_cut"), [("mean", True), ("sum", False)])
def test_of_losses_only_means_are_measured_in_parts(reduction, can_be_cut):
    def loss(model, item):
        return F.mse_loss(model(item[0]), item[1], reduction=reduction)

    pairs = [(x, torch.roll(x, 1, 1)) for x in BATCHES]
    scene = scene_of(BATCHES)
    scene = replace(scene, batches=read_calibration(pairs, scene.model, loss), loss=loss)
    found, reuse_policy = measured_in_parts(scene)
    assert bool(reuse_policy.fewest) is can_be_cut
    assert found.impacts == pytest.approx(score_ablation(replace(scene, reuse_policy=ReusePolicy())).impacts)


def test_a_first_look_is_at_a_quarter_of_one_batch():
    scene = scene_of(BATCHES)
    found = ablate(scene, edits_of(scene), rule=first_only)
    assert found.looked_at is not None
    assert sorted(found.looked_at[:, 0].tolist()) == [0.0, 0.0, 0.25]
    row = int(found.looked_at[:, 0].argmax())
    part = replace(scene, batches=[scene.batches[row].samples(0, 8)], reuse_policy=ReusePolicy())
    assert found.impacts == pytest.approx(score_ablation(part).impacts)


def test_removals_are_made_on_few_samples_and_the_plan_says_so():
    scene = scene_of([BATCHES[0]] * 4)
    found = ablate(scene, edits_of(scene), rule=contenders(0.3, fewest=2))
    assert found.looked_at is not None
    assert found.looked_at.sum(0).min() == 0.25
    pruner = UniversalLayerPruner(scene.model, calibration=[BATCHES[0]] * 4)
    assert any("on average" in note for note in pruner.notes)
    again = UniversalLayerPruner(scene.model, calibration=[BATCHES[0]] * 4)
    assert again.plan(max_param_reduction=0.4).to_json() == pruner.plan(max_param_reduction=0.4).to_json()


def test_progress_comes_to_its_end_in_parts():
    told = []
    scene = replace(scene_of(BATCHES), progress=lambda done, total: told.append((done, total)))
    measured_in_parts(scene)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


# ---- noise ----------------------------------------------------------------------------------------------------------


def test_the_noise_of_an_impact_is_its_spread_from_batch_to_batch():
    change = np.array([[1.0, 2.0, 5.0], [3.0, 2.0, 0.0]])
    size = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    # The first is 2 ± √2, the second 2 ± 0, the third was measured once.
    assert ImpactScores(change=change, size=size, power=1.0, unit="").noise == pytest.approx(np.sqrt((0.5 + 0.0) / 2))
    halves = ImpactScores(change=change, size=size, power=1.0, unit="", looked_at=np.full((2, 3), 0.5))
    assert halves.noise == pytest.approx(np.sqrt((0.25 + 0.0) / 2))
    assert ImpactScores(change=change[:1], size=size[:1], power=1.0, unit="").noise == 0.0
