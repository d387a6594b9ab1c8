"""Pruning with calibration data repairs what it leaves, in a copy or in place, and says what it did."""

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner, quick_prune
from layerprune.errors import CalibrationError, RepairError
from layerprune.inputs import ArgumentReader
from models.nets import Damped, Photograph, linear, randomised, rows, same_bits


def net():
    return randomised(nn.Sequential(linear(), Damped(), linear()))


BATCHES = [rows(32, seed=seed) for seed in range(8)]
HELD_OUT = rows(64, seed=99)


def error(pruned, original):
    with torch.no_grad():
        return float((pruned(HELD_OUT) - original(HELD_OUT)).square().sum())


def test_with_calibration_data_the_output_comes_nearer_and_the_report_says_by_how_much():
    model = net()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    plan = pruner.plan(max_param_reduction=0.35)
    assert plan.removals
    plain = pruner.prune(plan=plan, repair=None)
    assert pruner.repair_report is None
    repaired = pruner.prune(plan=plan)
    assert error(repaired, model) < 0.7 * error(plain, model)
    assert pruner.repair_report.kept
    assert pruner.repair_report.after < pruner.repair_report.before
    assert sum(p.numel() for p in repaired.parameters()) == plan.num_params_after
    assert same_bits(plain, plan.apply(model)), "without repair the weights are the original's"


def test_the_users_model_stays_as_it_was():
    model = net()
    before = Photograph(model)
    quick_prune(model, 0.35, calibration=BATCHES)
    assert Photograph(model) == before


def test_in_place_the_users_model_gets_the_same_weights_as_a_copy():
    model, other = net(), net()
    copy = UniversalLayerPruner(model, calibration=BATCHES).prune(max_param_reduction=0.35)
    edited = UniversalLayerPruner(other, calibration=BATCHES).prune(max_param_reduction=0.35, inplace=True)
    assert edited is other
    assert same_bits(copy, edited)


def test_without_calibration_data_nothing_is_repaired():
    model = net()
    pruner = UniversalLayerPruner(model, example_inputs=HELD_OUT)
    pruned = pruner.prune(max_param_reduction=0.35)
    assert pruner.repair_report is None
    kept = dict(model.named_parameters())
    assert all(torch.equal(p, kept[name]) for name, p in pruned.named_parameters())


def test_data_that_cannot_be_repaired_on_leave_the_pruned_model_and_say_why(monkeypatch):
    def fails(*_args, **_options):
        raise CalibrationError("they do not fit")

    model = net()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    plan = pruner.plan(groups=["1.blocks.1"])
    monkeypatch.setattr("layerprune.execute.ClosedFormRepair", fails)
    pruned = pruner.prune(plan=plan)
    assert same_bits(pruned, plan.apply(model))
    assert pruner.repair_report.notes == ("not repaired: they do not fit",)


def test_a_repair_that_there_is_none_of_is_refused():
    with pytest.raises(RepairError, match="repair is 'magic'; give 'auto', 'mean', or None"):
        UniversalLayerPruner(net(), calibration=BATCHES).prune(max_param_reduction=0.35, repair="magic")


def test_the_mean_alone_moves_biases_and_no_weights():
    model = net()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    plan = pruner.plan(max_param_reduction=0.35)
    plain = pruner.prune(plan=plan, repair=None)
    pruned = pruner.prune(plan=plan, repair="mean")
    assert pruner.repair_report.kept
    assert error(pruned, model) < error(plain, model)
    before = dict(plain.named_parameters())
    changed = {name for name, p in pruned.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.endswith("bias") for name in changed)


class ListOfImages(nn.Module):
    """A detector in small: takes a list of images of three channels each, and says so."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images):
        assert all(image.shape[0] == 3 for image in images), "images have three channels"
        x = self.stem(torch.stack(list(images)))
        x = x + torch.tanh(self.a(x))
        x = x + torch.tanh(self.b(x))
        return self.head(x).mean((2, 3))


@pytest.mark.parametrize("form", [list, tuple])
@pytest.mark.parametrize("size", [8, 16])
def test_lists_of_images_lose_no_channels(form, size):
    model = randomised(ListOfImages())
    generator = torch.Generator().manual_seed(0)
    batches = [(form(torch.randn(3, 3, size, size, generator=generator)),) for _ in range(8)]
    pruner = UniversalLayerPruner(model, calibration=batches)
    pruner.prune(groups=["b"])
    assert pruner.repair_report.kept
    assert pruner.repair_report.after < 0.5 * pruner.repair_report.before
    assert not any("not repaired" in note for note in pruner.repair_report.notes)


def test_a_forward_that_wants_the_whole_batch_gets_it():
    class Whole(nn.Sequential):
        def forward(self, x):
            assert len(x) % 32 == 0, "batches are of 32 samples"
            return super().forward(x)

    model = randomised(Whole(linear(), Damped(), linear()))
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    pruned = pruner.prune(max_param_reduction=0.35)
    assert pruner.repair_report.kept
    same = UniversalLayerPruner(net(), calibration=BATCHES).prune(max_param_reduction=0.35)
    assert torch.allclose(pruned(HELD_OUT), same(HELD_OUT))


@pytest.mark.parametrize("strategy", ["auto", "repaired"])
def test_calibration_data_are_read_once_and_handed_down(strategy, monkeypatch):
    read = []
    original = ArgumentReader.read
    monkeypatch.setattr(ArgumentReader, "read", lambda reader, item: read.append(item) or original(reader, item))
    pruner = UniversalLayerPruner(net(), calibration=BATCHES)
    pruner.prune(max_param_reduction=0.35, strategy=strategy)
    assert pruner.repair_report is not None
    assert len(read) == len(BATCHES)
