"""Modules that never run: counted, named, and taken out first where the user says that nothing else calls them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerprune import PruningPlan, UniversalLayerPruner, load_pruned, save_pruned
from layerprune.errors import BudgetError, DroppedTensorError, ShortfallWarning
from layerprune.modules import num_params
from models.nets import Net, Photograph, linear, randomised, rows, run, same_bits


class Stages(nn.Module):
    """An encoder of which some stages run: those after ``depth`` hang there for nothing, as in a U-Net's encoder."""

    def __init__(self, depth=2):
        super().__init__()
        self.depth = depth
        self.stem, self.head = linear(), linear(8, 3)
        self.stages = nn.ModuleList(nn.Sequential(linear(), nn.ReLU(), linear()) for _ in range(4))
        self.auxiliary, self.classifier = linear(8, 5), nn.Sequential(linear(), linear(8, 10))

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages[: self.depth]:
            x = x + stage(x)
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)

    def classify(self, x):
        return self.classifier(self.stem(x))


SIZES = {"classifier": 162, "stages.2": 144, "stages.3": 144}


def prepared():
    return UniversalLayerPruner(randomised(Stages()), example_inputs=rows())


def unused_of(model, inputs):
    return [each.name for each in UniversalLayerPruner(randomised(model), example_inputs=inputs).unused]


def test_what_neither_mode_runs_is_named_and_counted():
    """The auxiliary head runs in train mode."""
    pruner = prepared()
    assert {each.name: each.num_params for each in pruner.unused} == SIZES
    assert pruner.unused[0].name == "classifier"
    (note,) = (note for note in pruner.notes if "never run" in note)
    assert note.startswith(f"450 parameters ({450 / num_params(pruner.model):.1%})")
    assert "'classifier'" in note
    assert "prune(unused=True)" in note


def test_it_leaves_when_the_user_says_so_and_the_plan_says_what_that_assumes(tmp_path):
    pruner = prepared()
    model, before = pruner.model, Photograph(pruner.model)
    plan = pruner.plan(unused=True)
    assert {removal.name.partition(",")[0]: removal.num_params for removal in plan.removals} == SIZES
    assert all(removal.kind == "unused" and removal.impact == 0 for removal in plan.removals)
    assert "it is assumed that nothing else calls it" in plan.notes[0]
    assert PruningPlan.from_json(plan.to_json()) == plan
    pruner.print_plan(plan)
    pruned = pruner.prune(unused=True)
    assert before == Photograph(model)
    assert num_params(pruned) == num_params(model) - 450 == plan.num_params_after
    assert torch.equal(run(pruned, rows()), run(model, rows()))
    for one, other in zip(pruned.train()(rows()), model.train()(rows()), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(DroppedTensorError, match=r"'classifier' out because .* now it is called"):
        pruned.classify(rows())
    save_pruned(pruned.eval(), tmp_path / "small")
    assert same_bits(load_pruned(tmp_path / "small", factory=Stages), pruned)


def test_what_is_left_is_pruned_as_if_the_rest_had_never_been():
    slim = prepared().prune(unused=True)
    pruner = UniversalLayerPruner(slim, example_inputs=rows())
    assert pruner.unused == ()
    assert num_params(pruner.prune(groups=["stages.0.0", "stages.0.2"])) == num_params(slim) - 144


def test_example_inputs_that_reach_a_module_keep_it():
    def forward(net, x, deep):
        x = net.a(x)
        return net.b(net.c(x) if deep else x)

    model = Net(forward, a=linear(), b=linear(), c=linear())
    assert unused_of(model, {"x": rows(), "deep": False}) == ["c"]
    assert unused_of(model, {"x": rows(), "deep": True}) == []


def test_parameters_that_a_function_uses_keep_the_module_that_holds_them():
    held = nn.Module()
    held.weight = nn.Parameter(torch.randn(8, 8))
    assert unused_of(Net(lambda net, x: net.b(x @ net.held.weight), held=held, b=linear(8, 3)), rows()) == []


def test_a_module_that_the_forward_looks_at_stays():
    """The model asks for its weight's type, and would fail without it."""
    model = Net(lambda net, x: net.b(net.a(x.to(net.c.weight.dtype))), a=linear(), b=linear(8, 3), c=linear(8, 2))
    assert unused_of(model, rows()) == []


def test_weights_that_are_tied_to_some_that_run_do_not_leave():
    model = Net(lambda net, x: net.b(net.a(x)), a=linear(), b=linear(8, 3), c=linear())
    model.c.weight = model.a.weight
    assert unused_of(model, rows()) == []


def test_where_everything_runs_there_is_nothing_to_take_out_and_it_is_said():
    model = randomised(nn.Sequential(linear(), linear(), linear()))
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    with pytest.warns(ShortfallWarning, match="every module with parameters runs"):
        assert num_params(pruner.prune(unused=True)) == num_params(model)


def test_it_is_asked_for_alone():
    with pytest.raises(BudgetError, match="give it alone"):
        prepared().plan(unused=True, max_param_reduction=0.3)
