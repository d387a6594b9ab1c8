"""A verdict is on real runs: what is known without a forward counts where the repaired model confirms it."""

import pytest
import torch
from test_repair import BATCHES, branched, without
from torch import nn

from layerprune.capture import read_calibration, real_sandbox
from layerprune.modules import no_fast_path
from layerprune.repair import closed_form, repair
from layerprune.repair import verdict as judging
from layerprune.repair.verdict import Judged, judge
from models.nets import copy_of, linear, randomised, rows


@pytest.fixture
def runs(monkeypatch):
    """How many samples each run of a model has that is made for the verdict."""
    found = []
    whole = judging._output
    monkeypatch.setattr(judging, "_output", lambda shade, batch: found.append(batch.num_samples) or whole(shade, batch))
    return found


@pytest.mark.parametrize(("off", "num_samples"), [(0.0, [1]), (0.1, [1, 8])])
def test_a_mended_output_counts_where_the_repaired_model_confirms_it(runs, off, num_samples):
    model = randomised(nn.Sequential(linear(), linear()))
    batch = read_calibration([rows(8)], model)[0]
    shade = real_sandbox(model)
    with torch.no_grad(), no_fast_path():
        out = model(rows(8))
    one = Judged(batch, original=out * 1.5, before=out * 2, mended=out + off)
    verdict = judge(model, (shade, shade, shade), [one], None)
    assert runs == num_samples
    assert verdict.after == pytest.approx(float((out / 2).norm() / (out * 1.5).norm()) ** 2, rel=1e-5)


def test_the_verdict_does_not_trust_a_mended_forward_that_went_wrong(monkeypatch, runs):
    """Where changes were not made, the real model is run, and the verdict is the same."""
    model = branched(torch.tanh)
    pruned, edits = without(model, "branch", BATCHES[0])
    broken = copy_of(pruned)
    right = repair(model, pruned, BATCHES, edits=edits)
    assert runs == [5]
    runs.clear()
    waits = closed_form.ClosedFormRepair._judged

    def wrong(*args):
        one = waits(*args)
        one.mended.add_(0.1)
        return one

    monkeypatch.setattr(closed_form.ClosedFormRepair, "_judged", wrong)
    assert repair(model, broken, BATCHES, edits=edits).after == pytest.approx(right.after, rel=1e-4)
    assert runs == [5, 40]
