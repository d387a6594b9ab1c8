"""The default with data: all removals estimated, the promising ones made, on as many batches as it takes; intervals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from layerprune import UniversalLayerPruner
from layerprune.calibration import read_calibration
from layerprune.impact import shortlist
from layerprune.impact.ablation import ablate, score_ablation
from layerprune.impact.evidence import Evidence, Scene
from nets import Net, linear, randomised, rows

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
    return Scene(model, pruner.graph, pruner.removals, read_calibration(batches, model), seed)


def edits_of(scene):
    return [removal.edits for removal in scene.removals]


def test_batches_that_agree_settle_an_impact_after_two():
    scene = scene_of([BATCHES[0]] * 6)
    found = ablate(scene, edits_of(scene), precision=0.2)
    assert ((found.size != 0).sum(0) == 2).all()
    assert found.impacts == pytest.approx(score_ablation(scene).impacts)


def test_batches_that_do_not_agree_are_all_looked_at():
    scene = scene_of(BATCHES)
    found = ablate(scene, edits_of(scene), precision=1e-6)
    assert found.change.tolist() == score_ablation(scene).change.tolist()


def test_the_batches_come_in_an_order_of_the_seed_and_each_is_in_its_row():
    scene = scene_of(BATCHES)
    whole = score_ablation(scene).change
    chosen = []
    for seed in range(8):
        found = ablate(replace(scene, seed=seed), edits_of(scene), precision=1e6)
        used = (found.size[:, 0] != 0).nonzero()[0]
        assert len(used) == 2
        assert found.change[used].tolist() == whole[used].tolist()
        chosen.append(tuple(used))
    assert len(set(chosen)) > 1


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
    monkeypatch.setattr(shortlist, "PRECISION", 0.0)
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


def test_what_was_saved_is_said_and_the_pruner_plans_with_it():
    scene = scene_of(BATCHES)
    pruner = UniversalLayerPruner(scene.model, calibration=[BATCHES[0]] * 6)
    assert any("2.0 on average" in note for note in pruner.notes)
    assert pruner.impact_unit == "squared relative L2 change of the output, by ablation, on the calibration data"


# ---- intervals --------------------------------------------------------------------------------------------------


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
    found = Evidence(change, size, 1.0, "")
    assert found.impacts.tolist() == [2.5, 6.0]
    draws = found.resampled(0)
    assert set(draws[:, 1]) == {5.0, 6.0, 7.0}
    assert np.mean(draws[:, 1] == 6.0) == pytest.approx(0.5, abs=0.12)
    assert draws[:, 0].min() >= 1.0
    assert draws[:, 0].std() == pytest.approx(np.sqrt(1.25 / 4), rel=0.2)
