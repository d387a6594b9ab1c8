"""Data, weights and outputs that are no numbers, and data that hold nothing: batch and layer are named, never 0.0."""

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.errors import BudgetError, CalibrationError, InputsError, NotFiniteError
from layerprune.repair import repair
from layerprune.repair.batchnorm import reestimate
from models.nets import Damped, Net, linear, randomised, rows

BATCHES = [rows(8, seed=seed) for seed in range(4)]
CRITERIA = ["auto", "ablation", "influence", "output_change", "magnitude"]


def net(**options):
    return randomised(nn.Sequential(linear(), Damped(), linear()), **options)


def spoilt(number, value=float("nan")):
    batches = [batch.clone() for batch in BATCHES]
    batches[number][0, 0] = value
    return batches


class Limited(nn.Module):
    """Feeds inf where a sample begins with more than 2, as a division by a small number would."""

    def forward(self, x):
        return torch.where(x[:, :1] > 2, x / 0, x)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_in_the_data_that_are_no_numbers_are_refused_with_batch_and_first_layer(criterion, value):
    pruner = UniversalLayerPruner(net(), calibration=spoilt(2, value), criterion=criterion)
    with pytest.raises(NotFiniteError, match=r"^batch 2 .* '0' \(Linear\) is the first layer .*the batch itself holds"):
        _ = pruner.removals


def test_a_plan_made_before_is_not_carried_out_on_such_data_either():
    model = net()
    plan = UniversalLayerPruner(model, calibration=BATCHES).plan(groups=["1.blocks.1"])
    with pytest.raises(NotFiniteError, match="batch 3"):
        UniversalLayerPruner(model, calibration=spoilt(3)).prune(plan=plan)


def test_a_weight_that_is_no_number_is_named_where_outputs_depend_on_it():
    model = net()
    with torch.no_grad():
        model[1].blocks[0].weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"'1\.blocks\.0' \(Linear\) .*: its '1\.blocks\.0\.weight' holds NaN"):
        _ = UniversalLayerPruner(model, calibration=BATCHES).removals


def test_without_calibration_data_a_note_names_the_layer_and_impacts_are_unknown_rather_than_0():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    assert any("'0' (Linear) is the first layer that feeds NaN" in note for note in pruner.notes)
    assert all(removal.impact != 0 for removal in pruner.removals)


def test_a_model_that_makes_numbers_of_missing_values_is_scored():
    fills = Net(lambda net, x: net.rest(torch.nan_to_num(x)), rest=net())
    pruner = UniversalLayerPruner(fills, calibration=spoilt(1))
    assert all(0 < removal.impact < float("inf") for removal in pruner.removals)


@pytest.mark.parametrize("criterion", ["auto", "ablation", "output_change", "influence"])
def test_batches_that_only_the_model_spoils_are_left_out_and_a_note_says_which_and_where(criterion):
    model = nn.Sequential(Limited(), *net())
    batches = [batch.clamp(-1, 1) for batch in BATCHES]
    batches[1][0, 0] = 3.0
    found = UniversalLayerPruner(model, calibration=batches, criterion=criterion)
    without = UniversalLayerPruner(model, calibration=[batches[0], *batches[2:]], criterion=criterion)
    assert [r.impact for r in found.removals] == [r.impact for r in without.removals]
    (note,) = [note for note in found.notes if "left out" in note]
    assert "1 of 4 calibration batches are left out: batch 1" in note
    assert "'0' (Limited) is the first layer that feeds infinite values" in note
    found.prune(groups=["2.blocks.1"])
    assert found.repair_report.kept
    assert any("left out: batch 1" in note for note in found.repair_report.notes)


def test_where_the_model_makes_no_numbers_of_any_batch_the_error_says_so():
    model = nn.Sequential(Limited(), *net())
    with pytest.raises(NotFiniteError, match=r"batch 0 .*'0' \(Limited\).* and so do all others"):
        _ = UniversalLayerPruner(model, calibration=[batch * 0 + 3 for batch in BATCHES]).removals


def test_a_half_model_that_overflows_is_told_to_be_pruned_in_single_precision():
    model = net().half()
    with torch.no_grad():
        model[0].weight.fill_(60000.0)
    with pytest.raises(NotFiniteError, match=r"float16 ends at 6\.55e\+04: prune a float32 copy"):
        _ = UniversalLayerPruner(model, calibration=[batch.abs().half() for batch in BATCHES]).removals


def test_classes_that_may_not_be_chosen_are_no_fault():
    """A logit of -inf says so; 0 log 0 is 0."""
    bar = torch.tensor([0.0] * 7 + [-float("inf")])
    barred = Net(lambda net, x: net.rest(x) + net.bar, rest=net(), bar=bar)
    free = Net(lambda net, x: net.rest(x)[:, :7], rest=net())
    found, same = (
        [removal.impact for removal in UniversalLayerPruner(m, calibration=BATCHES, kind="distribution").removals]
        for m in (barred, free)
    )
    assert found == pytest.approx(same, rel=1e-4)


def test_a_loss_that_is_no_number_names_the_layer_where_the_model_is_at_fault():
    def loss(model, batch):
        return model(batch).square().mean()

    pruner = UniversalLayerPruner(net(), calibration=spoilt(1), loss=loss)
    with pytest.raises(NotFiniteError, match=r"batch 1 .*'0' \(Linear\)"):
        _ = pruner.removals
    skips = UniversalLayerPruner(net(), calibration=spoilt(1), loss=lambda m, x: m(x).square().nanmean())
    assert all(removal.impact == removal.impact for removal in skips.removals)


@pytest.mark.parametrize(
    "empty", [torch.zeros(0, 8), torch.zeros(4, 0), (torch.zeros(0, 8),), {"input": torch.zeros(0, 8)}]
)
def test_batches_that_hold_nothing_are_refused_by_number(empty):
    with pytest.raises(CalibrationError, match="batch 1 of the calibration data is empty"):
        UniversalLayerPruner(net(), calibration=[BATCHES[0], empty])


def test_example_inputs_that_hold_nothing_are_refused():
    with pytest.raises(InputsError, match="example_inputs hold no element"):
        UniversalLayerPruner(net(), example_inputs=torch.zeros(0, 8))


def test_data_of_which_nothing_counts_are_refused():
    """All of it is padding by its mask: nothing is compared, and no impact is 0 for that."""
    model = Net(lambda net, x, attention_mask: net.rest(x), rest=net())
    batches = [{"x": rows(8).reshape(2, 4, 8), "attention_mask": torch.zeros(2, 4)}]
    pruner = UniversalLayerPruner(model, calibration=batches, kind="distribution")
    with pytest.raises(CalibrationError, match="no element of the model's output on them counts"):
        _ = pruner.removals


def test_ways_that_need_data_are_refused_without():
    pruner = UniversalLayerPruner(net(), example_inputs=rows())
    with pytest.raises(CalibrationError, match="repair='mean' measures on calibration data"):
        pruner.prune(max_param_reduction=0.35, repair="mean")
    with pytest.raises(BudgetError, match="'resampled' draws the calibration data anew, and there are none"):
        pruner.plan(max_param_reduction=0.35, strategy="resampled")
    with pytest.raises(BudgetError, match="'repaired' repairs what it removes, on calibration data"):
        pruner.plan(max_param_reduction=0.35, strategy="repaired")
    with pytest.raises(CalibrationError, match="loss= needs calibration="):
        UniversalLayerPruner(net(), example_inputs=rows(), loss=lambda model, batch: 0.0)


@pytest.mark.parametrize("how", ["refit", "mean"])
def test_a_repair_by_itself_names_the_batch(how):
    model = net()
    plan = UniversalLayerPruner(model, calibration=BATCHES).plan(groups=["1.blocks.1"])
    with pytest.raises(CalibrationError, match="batch 1"):
        repair(model, plan.apply(model), spoilt(1), edits=plan.edits, how=how)


def test_batch_norms_are_not_estimated_on_it_and_the_batch_is_named():
    model = nn.Sequential(linear(), nn.BatchNorm1d(8))
    with pytest.raises(NotFiniteError, match="batch 2 of the calibration data makes '1' see values"):
        reestimate(model, spoilt(2))
