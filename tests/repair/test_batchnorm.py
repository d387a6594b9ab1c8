"""Running statistics estimated anew: exact over all of the data, and nothing else touched."""

import pytest
import torch
from torch import nn

from layerprune.errors import CalibrationError
from layerprune.repair.batchnorm import reestimate
from models.nets import Net, Photograph, close, image, linear, randomised, rows, run

BATCHES = [rows(5, 4, seed=1), 3 + 2 * rows(9, 4, seed=2), rows(2, 4, seed=3)]


def normed(**options):
    return randomised(nn.Sequential(nn.BatchNorm1d(4, **options), linear(4)))


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}])
def test_mean_and_variance_are_those_of_all_samples(options):
    model = normed(**options)
    assert reestimate(model, BATCHES) == ("0",)
    whole = torch.cat(BATCHES)
    assert close(model[0].running_mean, whole.mean(0))
    assert close(model[0].running_var, whole.var(0))
    out = run(nn.Sequential(model[0]), whole)
    if not options.get("affine", True):
        assert close(out.mean(0), torch.zeros(4))


def test_a_later_norm_sees_what_the_earlier_ones_make_of_each_batch():
    model = randomised(nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)))
    reestimate(model, BATCHES)
    first = [
        (x - x.mean(0)) / (x.var(0, unbiased=False) + model[0].eps).sqrt() * model[0].weight + model[0].bias
        for x in BATCHES
    ]
    assert close(model[1].running_mean, torch.cat(first).mean(0).detach())


def test_all_calls_of_one_norm_count():
    model = randomised(Net(lambda net, x: net.norm(net.norm(x)), norm=nn.BatchNorm1d(4)))
    x = BATCHES[1]
    norm = model.norm
    once = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    reestimate(model, [x])
    assert close(norm.running_mean, torch.cat([x, once]).mean(0).detach())


def test_places_of_images_count_as_samples():
    model = randomised(nn.Sequential(nn.BatchNorm2d(3)))
    reestimate(model, [image(2), image(3, seed=2)])
    whole = torch.cat([image(2), image(3, seed=2)])
    assert close(model[0].running_var, whole.transpose(0, 1).flatten(1).var(1))


class Fused(nn.BatchNorm1d):
    """A batch norm with an activation and dropout inside, as timm has them."""

    def __init__(self):
        super().__init__(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(torch.relu(super().forward(x)))


def test_what_lies_in_a_norm_of_ones_own_stays_in_eval_mode():
    model = randomised(nn.Sequential(Fused(), nn.BatchNorm1d(4)))
    rng = torch.get_rng_state()
    reestimate(model, BATCHES)
    x = [torch.nn.functional.batch_norm(b, None, None, model[0].weight, model[0].bias, True) for b in BATCHES]
    assert close(model[1].running_mean, torch.relu(torch.cat(x)).mean(0).detach())
    assert torch.equal(rng, torch.get_rng_state())


def test_norms_without_statistics_and_modes_and_counts_stay():
    model = normed(track_running_stats=False).train()
    before = Photograph(model)
    assert reestimate(model, BATCHES) == ()
    assert before == Photograph(model)
    model = normed().train()
    before = Photograph(model)
    reestimate(model, BATCHES)
    after = Photograph(model)
    assert (before.modules, before.attributes, before.hooks) == (after.modules, after.attributes, after.hooks)
    moved = {name for name in before.values if not torch.equal(before.values[name], after.values[name])}
    assert moved == {"0.running_mean", "0.running_var"}


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([BATCHES[0], BATCHES[0][:1]], "on batch 1 .*two samples"),
        ([BATCHES[0], torch.full((3, 4), torch.nan)], "'0' see values that are not finite"),
        ([rows(3, 7)], "on batch 0"),
        ([], "no batch"),
    ],
)
def test_data_that_do_not_do_are_an_error_and_leave_the_statistics(batches, says):
    model = normed()
    before = Photograph(model)
    with pytest.raises(CalibrationError, match=says):
        reestimate(model, batches)
    assert before == Photograph(model)


def test_an_interrupt_leaves_the_old_statistics():
    def forward(net, x):
        if x.shape[0] == 2:
            raise KeyboardInterrupt
        return net.norm(x)

    model = randomised(Net(forward, norm=nn.BatchNorm1d(4)))
    before = Photograph(model)
    with pytest.raises(KeyboardInterrupt):
        reestimate(model, BATCHES)
    assert before == Photograph(model)
