"""Budgets: caps are kept, targets are reached, both measured apart from what selection reckons with."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.cost import Latency, activation_peak_bytes, buffer_bytes, count_macs, param_bytes, time_by_layer
from layerprune.cost.layer_costs import macs_by_layer
from layerprune.cost.macs import tally_macs
from layerprune.errors import BudgetError, CostError
from layerprune.inputs import as_inputs
from layerprune.modules import num_params
from layerprune.select import Budgets
from layerprune.select import resources as meter
from models.nets import ExampleModel, Net, conv, image, linear, randomised, rows, tokens


class Residual(nn.Module):
    def __init__(self, width, size=8):
        super().__init__()
        self.up, self.down = linear(size, width), linear(width, size)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def blocks(*widths):
    return randomised(nn.Sequential(linear(), *(Residual(width) for width in widths), linear()))


def pyramid():
    """Two convolutions of 36 parameters at 8×8, and a linear of 272 behind a pool: parameters and MACs disagree."""

    def forward(net, x):
        x = net.stem(x)
        x = x + net.early(x)
        x = x + net.late(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        x = x + net.wide2(torch.relu(net.wide1(x)))
        return net.head(x)

    parts = {"stem": conv(3, 4), "early": conv(4, 4), "late": conv(4, 4)}
    return randomised(Net(forward, **parts, wide1=nn.Linear(4, 64), wide2=nn.Linear(64, 4), head=nn.Linear(4, 5)))


# ---- what each layer costs -------------------------------------------------------------------------------------------


def test_multiply_accumulates_of_layers_are_those_by_hand():
    pruner = UniversalLayerPruner(pyramid(), example_inputs=image(1))
    found = {
        pruner.graph.layers[i].name: macs
        for i, macs in macs_by_layer(pruner.model, pruner.graph, pruner.inputs).items()
    }
    pixels = math.prod(image(1).shape[2:])
    assert found == {
        "stem": 3 * 4 * 9 * pixels, "early": 4 * 4 * 9 * pixels, "late": 4 * 4 * 9 * pixels,
        "wide1": 4 * 64, "wide2": 64 * 4, "head": 4 * 5,
    }  # fmt: skip


class Attention(nn.Module):
    """Called twice, with a function between modules that computes."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, x):
        q = self.project(x)
        return self.project(F.scaled_dot_product_attention(q, x, x))


def test_functions_and_second_calls_count_for_themselves():
    model = nn.Sequential(linear(), Attention(), linear())
    pruner = UniversalLayerPruner(model, example_inputs=tokens(1))
    length = tokens(1).shape[1]
    found = {pruner.graph.layers[i].name: macs for i, macs in macs_by_layer(model, pruner.graph, pruner.inputs).items()}
    assert found["1.project"] == found["1.project#1"] == 64 * length
    assert found["1.scaled_dot_product_attention"] == 2 * length * length * 8
    assert sum(found.values()) == tally_macs(model, pruner.inputs).total


def test_every_layer_that_runs_is_timed():
    pruner = UniversalLayerPruner(blocks(4, 9), example_inputs=rows())
    times = time_by_layer(pruner.model, pruner.graph, pruner.inputs)
    assert set(times) == set(pruner.graph.live)
    assert all(each >= 0 for each in times.values())


def test_what_a_plan_saves_is_measured_on_what_it_leaves():
    model, x = pyramid(), image(1)
    pruner = UniversalLayerPruner(model, example_inputs=x)
    plan = pruner.plan(groups=["early", "wide1"])
    saving = pruner.saving(plan)
    pixels = math.prod(x.shape[2:])
    assert saving.amount("macs") == 4 * 4 * 9 * pixels + 2 * 4 * 64
    assert saving.amount("num_params") == plan.num_params_before - plan.num_params_after
    assert saving.before.num_params == num_params(model)


# ---- caps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45, 0.8])
def test_a_cap_on_multiply_accumulates_is_kept(share):
    for model, x in ((pyramid(), image(1)), (randomised(ExampleModel()), image(1)), (blocks(1, 2, 5, 9), rows())):
        pruner = UniversalLayerPruner(model, example_inputs=x)
        plan = pruner.plan(max_mac_reduction=share)
        before, after = (count_macs(m, as_inputs(x)) for m in (model, plan.apply(model)))
        assert before - after <= share * before
        (figure,) = plan.figures
        assert (figure.name, figure.before, figure.after) == ("macs", before, after)


def test_a_cap_on_multiply_accumulates_is_used_and_parameters_do_not_matter():
    pruner = UniversalLayerPruner(pyramid(), example_inputs=image(1), protect=["wide*"])
    plan = pruner.plan(max_mac_reduction=0.8)
    assert {r.groups for r in plan.removals} == {("early",), ("late",)}
    assert any("of a budget of 80.0% of MACs is used" in note for note in plan.notes)
    few = UniversalLayerPruner(pyramid(), example_inputs=image(1)).plan(max_mac_reduction=0.05)
    assert {r.groups for r in few.removals} == {("wide1", "wide2")}, "most parameters, hardly any MACs"


def test_channels_of_a_concat_save_the_multiply_accumulates_of_its_readers_too():
    model = randomised(ExampleModel())
    pruner = UniversalLayerPruner(model, example_inputs=image(1))
    meter = pruner._planner.meter
    resource = meter.macs(0.5, True)
    for i, removal in enumerate(pruner.removals):
        if removal.kind == "concat":
            assert resource.limit.of([i]) == pytest.approx(resource.measure([i]))


def test_caps_hold_together():
    pruner = UniversalLayerPruner(pyramid(), example_inputs=image(1))
    model, x = pruner.model, image(1)
    plan = pruner.plan(max_param_reduction=0.2, max_mac_reduction=0.5)
    pruned = plan.apply(model)
    assert num_params(model) - num_params(pruned) <= 0.2 * num_params(model)
    assert count_macs(pruned, as_inputs(x)) >= 0.5 * count_macs(model, as_inputs(x))
    assert len(plan.removals) == 1, (
        "one of the two convolutions: both are too many MACs, the linears too many parameters"
    )


BATCHES = [rows(6, seed=seed) for seed in (1, 2, 3)]


def test_the_impact_of_all_together_stays_below_its_cap_when_it_is_measured():
    pruner = UniversalLayerPruner(blocks(1, 2, 3, 5, 9), calibration=BATCHES)
    every = pruner.plan(max_param_reduction=0.9).impact_together
    for share in (0.2, 0.5):
        plan = pruner.plan(max_impact=share * every)
        assert plan.removals
        assert plan.impact_together <= share * every
        original, pruned = pruner._original, plan.apply(pruner._original)
        with torch.no_grad():
            change = [((pruned(x) - original(x)).square().sum() / original(x).square().sum()).item() for x in BATCHES]
        assert plan.impact_together == pytest.approx(sum(change) / 3, rel=1e-4)


def test_a_cap_on_impact_below_every_removal_leaves_all():
    plan = UniversalLayerPruner(blocks(4, 9), calibration=BATCHES).plan(max_impact=1e-12)
    assert (plan.removals, plan.reduction) == ((), 0.0)


# ---- targets ---------------------------------------------------------------------------------------------------------


def held(model, x):
    return param_bytes(model) + buffer_bytes(model) + activation_peak_bytes(model, as_inputs(x))


def test_a_target_of_memory_is_reached_with_the_least_impact():
    model = blocks(10, 20, 40, 80)
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    needed = held(model, rows()) - 4 * pruner.removals[2].num_params
    plan = pruner.plan(max_memory_bytes=needed)
    pruned = plan.apply(model)
    assert held(pruned, rows()) <= needed
    enough = [r.impact for r in pruner.removals if 4 * r.num_params >= held(model, rows()) - needed]
    assert sum(r.impact for r in plan.removals) <= min(enough) + 1e-6
    (figure,) = plan.figures
    assert (figure.name, figure.before, figure.after) == ("memory_bytes", held(model, rows()), held(pruned, rows()))


def test_a_target_that_the_model_meets_already_removes_nothing_and_says_so():
    model = blocks(4, 9)
    plan = UniversalLayerPruner(model, example_inputs=rows()).plan(max_memory_bytes=2**30)
    assert plan.removals == ()
    assert "the model is within the target as it is" in plan.notes


def test_a_target_out_of_reach_says_how_close_it_comes():
    pruner = UniversalLayerPruner(blocks(4, 9), example_inputs=rows())
    least = held(pruner.prune(max_param_reduction=0.99), rows())
    with pytest.raises(BudgetError, match=rf"max_memory_bytes: 10 B is asked for, {least} B comes out at the most"):
        pruner.plan(max_memory_bytes=10)


def test_a_target_that_contradicts_a_cap_names_both():
    pruner = UniversalLayerPruner(blocks(100, 90), example_inputs=rows())
    need = held(pruner._original, rows()) - 4 * 1400
    assert pruner.plan(max_memory_bytes=need).removals
    with pytest.raises(BudgetError, match=r"within max_param_reduction reaches the target: max_memory_bytes"):
        pruner.plan(max_memory_bytes=need, max_param_reduction=0.1)


def test_a_target_that_contradicts_a_cap_on_the_impact_names_both():
    pruner = UniversalLayerPruner(blocks(100, 90), example_inputs=rows())
    need = held(pruner._original, rows()) - 4 * 1400
    with pytest.raises(BudgetError, match=r"within max_impact reaches the target: max_memory_bytes: .* at the most"):
        pruner.plan(max_memory_bytes=need, max_impact=1e-9)


@pytest.fixture
def clock(monkeypatch):
    """A clock by which a model takes a millisecond, and one more for each thousand parameters."""

    def compared(models, inputs):
        return {name: Latency((1 + num_params(m) / 1000,) * 2, 1, 1) for name, m in models.items()}

    monkeypatch.setattr(meter, "compare_latency", compared)


@pytest.mark.parametrize("guess", [0.2, 1.0, 5.0], ids=["too low", "right", "too high"])
def test_a_target_of_latency_is_reached_by_the_clock_whatever_layers_seemed_to_take(clock, monkeypatch, guess):
    model = blocks(*[60] * 8)  # of 1,028 parameters each
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    graph = pruner.graph
    transforms = [layer.index for layer in graph.layers if layer.kind == "transform"]
    others = [layer.index for layer in graph.layers if layer.kind != "transform"]
    times = {**dict.fromkeys(transforms, guess), **dict.fromkeys(others, 1.0)}
    monkeypatch.setattr(meter, "time_by_layer", lambda *_: times)
    before = 1 + num_params(model) / 1000
    plan = pruner.plan(target_latency_ms=before - 3)
    (figure,) = plan.figures
    assert (figure.name, figure.before) == ("latency_ms", before)
    assert figure.after <= before - 3
    assert len(plan.removals) == 3, "each saves 1.028 ms"


def test_a_latency_out_of_reach_says_how_close_it_comes(clock):
    model = blocks(4, 9)
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    least = 1 + 2 * 72 / 1000  # the stem and the head
    with pytest.raises(
        BudgetError, match=rf"target_latency_ms: 1 ms is asked for, {least:.3g} ms comes out at the most"
    ):
        pruner.plan(target_latency_ms=1.0)


def test_a_latency_on_the_meta_device_is_refused():
    pruner = UniversalLayerPruner(blocks(4, 9).to("meta"), example_inputs=rows().to("meta"))
    with pytest.raises(CostError, match="meta device"):
        pruner.plan(target_latency_ms=1.0)


# ---- what budgets are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_param_reduction", "max_mac_reduction"])
@pytest.mark.parametrize("value", [0, 1, -0.1, 30, "0.3", True, float("nan")])
def test_a_share_is_between_0_and_1(name, value):
    with pytest.raises(BudgetError, match=f"{name} is .*; give a share between 0 and 1"):
        Budgets(**{name: value})


@pytest.mark.parametrize("name", ["target_latency_ms", "max_memory_bytes", "max_impact"])
@pytest.mark.parametrize("value", [0, -1, "5", True, float("nan"), float("inf")])
def test_an_amount_is_above_0(name, value):
    with pytest.raises(BudgetError, match=f"{name} is .*; give a number above 0"):
        Budgets(**{name: value})


def test_budgets_and_groups_exclude_each_other():
    pruner = UniversalLayerPruner(blocks(4, 9), example_inputs=rows())
    with pytest.raises(BudgetError, match="not both"):
        pruner.plan(groups=["1.up"], max_mac_reduction=0.3)


def test_a_strategy_of_no_name_lists_those_that_there_are():
    pruner = UniversalLayerPruner(blocks(4, 9), example_inputs=rows())
    with pytest.raises(BudgetError, match="there is no strategy 'best'; there are auto, exact, quadratic"):
        pruner.plan(strategy="best")
