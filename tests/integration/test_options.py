"""What the calls of the library take: several forms of one thing, and an error of our own for all else."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from layerprune import LayerPruneError, PruningPlan, UniversalLayerPruner, load_pruned, quick_prune, save_pruned
from layerprune.errors import (
    ArgumentError,
    CheckpointError,
    LayerPruneWarning,
    PlanError,
    UnknownNameError,
    UnsupportedModelError,
)
from layerprune.modules import num_params
from models.nets import Damped, linear, randomised, rows, same_bits


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem, self.head = linear(), linear()
        self.blocks = nn.ModuleList([Damped() for _ in range(3)])
        self.width = width

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net():
    return randomised(Net())


def pruner(model=None, **options):
    return UniversalLayerPruner(net() if model is None else model, example_inputs=rows(), **options)


WRONG = [5, 0.5, b"x", object(), lambda: 1, nn.Linear, torch.ones(2), [5], [None], [[]], {1: 2}]


def refused(call, error=LayerPruneError):
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, LayerPruneError)
    assert 20 < len(str(caught.value)) <= 300, str(caught.value)
    return str(caught.value)


# ---- what is protected ----------------------------------------------------------------------------------------------


def protected(**options):
    return {group.name for group in pruner(**options).groups if "protected" in group.reason}


def test_protect_takes_patterns_modules_groups_and_layers():
    model = net()
    first, second = [group for group in pruner(model).groups if group.can_remove][:2]
    assert protected(model=model, protect=None) == set()
    assert protected(model=model, protect=model.blocks[0]) == protected(model=model, protect=["blocks.0"])
    assert protected(model=model, protect=[*model.blocks[:2]]) == protected(model=model, protect=["blocks.[01]"])
    assert protected(model=model, protect=model.blocks) == protected(model=model, protect="blocks")
    assert protected(model=model, protect=[first, second.lead_transform]) == {first.name, second.name}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_protects_nothing_is_refused(wrong):
    assert "protect=['layer1*', 'head']" in refused(lambda: pruner(protect=wrong), ArgumentError)


def test_a_module_of_another_model_protects_nothing():
    assert "no module inside the model" in refused(lambda: pruner(protect=linear()), UnknownNameError)


@pytest.mark.parametrize("seed", [None, "x", 0.5, -1, 10**40, [1], torch.ones(2)], ids=repr)
def test_a_seed_is_a_whole_number(seed):
    assert "give a whole number of 0 or more" in refused(lambda: pruner(seed=seed), ArgumentError)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("criterion", ["auto", "shortlist", "ablation", "output_change", "loss", "influence", "magnitude"]),
        ("kind", ["'distribution'", "'values'", "None"]),
        ("granularity", ["group", "branch", "block"]),
    ],
)
@pytest.mark.parametrize("wrong", [[], {}, 5, "x"], ids=repr)
def test_an_option_of_names_says_which_there_are(name, known, wrong):
    text = refused(lambda: pruner(**{name: wrong}))
    assert name in text
    assert all(each in text for each in known)


@pytest.mark.parametrize("wrong", [[], {}, 5, "x"], ids=repr)
def test_a_strategy_of_no_name_says_which_there_are(wrong):
    assert "exact" in refused(lambda: pruner().prune(max_param_reduction=0.4, strategy=wrong))


# ---- plans ----------------------------------------------------------------------------------------------------------


def forms(plan, folder):
    yield plan
    yield plan.to_json()
    yield json.loads(plan.to_json())
    yield plan.model_dump()
    yield plan.save(folder / "plan of mine.json")
    yield str(folder / "plan of mine.json")


def test_a_plan_is_taken_in_every_form_that_it_has(tmp_path, capsys):
    model = net()
    made = pruner(model)
    plan = made.plan(max_param_reduction=0.4)
    assert plan.removals
    expected = plan.apply(model)
    for form in forms(plan, tmp_path):
        assert same_bits(made.prune(plan=form), expected)
        assert made.saving(form) == made.saving(plan)
        save_pruned(made.model, tmp_path / "small", plan=form)
        assert PruningPlan.load(tmp_path / "small") == plan
        made.print_plan(form)
        assert "CHOSEN REMOVALS" in capsys.readouterr().out


def test_a_plan_is_written_at_once_and_read_again(tmp_path):
    plan = pruner().plan(max_param_reduction=0.4)
    path = plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(path) == plan
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]
    refused(lambda: plan.save(path / "below" / "plan.json"), PlanError)
    assert "there is no file" in refused(lambda: PruningPlan.load(tmp_path / "other.json"), PlanError)
    (tmp_path / "broken.json").write_text("{")
    assert "broken.json" in refused(lambda: PruningPlan.load(tmp_path / "broken.json"), PlanError)


@pytest.mark.parametrize("wrong", [*WRONG, "", "no such file", "{", {}, {"removals": []}, []])
def test_what_is_no_plan_is_refused_wherever_one_is_taken(wrong):
    made = pruner()
    refused(lambda: made.prune(plan=wrong), PlanError)
    refused(lambda: made.saving(wrong), PlanError)


# ---- in place -------------------------------------------------------------------------------------------------------


def test_a_pruner_whose_model_was_edited_starts_from_it_no_more():
    model = net()
    made = pruner(model)
    first = made.plan(groups=["blocks.0"])
    pruned = made.prune(plan=first, inplace=True)
    assert pruned is model
    left = num_params(model)
    again = (lambda: made.prune(max_param_reduction=0.4, inplace=True), lambda: made.prune(plan=first))
    for call in (*again, made.plan, lambda: made.saving(first)):
        assert "pruned in place" in refused(call, PlanError)
    assert num_params(model) == left
    made.print_plan()  # what was found stays to be seen
    again = pruner(model).prune(groups=["blocks.1"], inplace=True)
    assert num_params(again) < left


def test_where_nothing_was_edited_in_place_the_pruner_goes_on():
    made = pruner()
    with pytest.warns(LayerPruneWarning):
        made.prune(groups=[], inplace=True)
    assert num_params(made.prune(groups=["blocks.0"], inplace=True)) < num_params(net())


# ---- saving and loading ---------------------------------------------------------------------------------------------


def test_after_several_prunes_saving_says_which(tmp_path):
    made = pruner()
    made.prune(groups=["blocks.0"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.save(tmp_path / "one")
    last = made.prune(groups=["blocks.1", "blocks.2"])
    with pytest.warns(LayerPruneWarning, match=r"of 2 models pruned the last is saved, Net: 1,008 → 432 parameters"):
        made.save(tmp_path / "two")
    assert same_bits(load_pruned(tmp_path / "two", net()), last)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "small"
    model = pruner().prune(max_param_reduction=0.4)
    save_pruned(model, folder)
    return folder, model


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: load_pruned(folder, Net),
        lambda folder: load_pruned(folder, Net()),
        lambda folder: load_pruned(folder, lambda: Net(width=8)),
        lambda folder: load_pruned(folder, model=Net),
        lambda folder: load_pruned(str(folder), factory=Net()),
        lambda folder: load_pruned(folder, factory=Net),
    ],
)
def test_an_instance_a_class_and_a_function_will_do(saved, load):
    folder, model = saved
    assert same_bits(load(folder), model)


@pytest.mark.parametrize("wrong", [5, "Net", {}, [], torch.ones(2), nn.Linear, lambda: 5, lambda x: x])
def test_what_makes_no_unpruned_model_is_refused(saved, wrong):
    for call in (lambda: load_pruned(saved[0], wrong), lambda: load_pruned(saved[0], factory=wrong)):
        refused(call, CheckpointError)


def test_the_error_of_a_class_that_wants_arguments_says_how_to_give_them(saved):
    text = refused(lambda: load_pruned(saved[0], nn.Linear), CheckpointError)
    assert "factory=lambda: Linear(…)" in text
    assert "TypeError" in text


def test_a_pruned_instance_is_no_unpruned_one(saved):
    assert "pruned already" in refused(lambda: load_pruned(saved[0], saved[1]), CheckpointError)


@pytest.mark.parametrize("device", [5.5, "nowhere", []], ids=repr)
def test_a_device_that_is_none_is_refused(saved, device):
    refused(lambda: load_pruned(saved[0], Net, device=device), CheckpointError)


@pytest.mark.parametrize("folder", [None, 5, [], b"x"], ids=repr)
def test_a_folder_is_a_path(saved, folder):
    refused(lambda: load_pruned(folder, Net), CheckpointError)
    refused(lambda: save_pruned(saved[1], folder), CheckpointError)


@pytest.mark.parametrize("options", [{"figures": 5}, {"figures": {"a": "b"}}, {"max_shard_bytes": None}], ids=repr)
def test_options_of_saving_are_checked(saved, options, tmp_path):
    refused(lambda: save_pruned(saved[1], tmp_path / "a", **options), CheckpointError)
    assert not Path(tmp_path / "a").exists()


@pytest.mark.parametrize("wrong", [None, 5, "resnet50", Net, {}, torch.ones(2)], ids=repr)
def test_what_is_no_model_is_refused_by_every_call(wrong, tmp_path):
    plan = pruner().plan(groups=["blocks.0"])
    calls = (
        lambda: UniversalLayerPruner(wrong),
        lambda: quick_prune(wrong),
        lambda: save_pruned(wrong, tmp_path / "a"),
        lambda: plan.apply(wrong),
    )
    for call in calls:
        assert "expected a torch.nn.Module" in refused(call, UnsupportedModelError)


def test_a_pruner_in_place_of_its_model_is_told_so(tmp_path):
    assert "its attribute .model" in refused(lambda: save_pruned(pruner(), tmp_path / "a"), UnsupportedModelError)
