"""The promise that the project began with: its example network, its API without further arguments, its printed plan."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner, quick_prune
from models.nets import ExampleModel, Photograph, close, image, randomised, run

NUM_PARAMS = 89_034

# (lead, kind of lead, type, parameters with share, members after the lead)
EXPECTED = {
    "conv2a": (
        "Conv2d",
        "parallel_branch",
        "18,624 (20.9%)",
        ["bn2a: BatchNorm2d (normalization)", "relu2a: ReLU (activation)"],
    ),
    "conv2b": ("Conv2d", "parallel_branch", "51,392 (57.7%)", ["bn2b: BatchNorm2d (normalization)"]),
    "conv1": (
        "Conv2d",
        "transform_unit",
        "960 (1.1%)",
        ["bn1: BatchNorm2d (normalization)", "relu1: ReLU (activation)", "pool1: MaxPool2d (pooling)"],
    ),
    "conv3": (
        "Conv2d",
        "complex",
        "16,768 (18.8%)",
        [
            "bn3: BatchNorm2d (normalization)",
            "relu3: ReLU (activation)",
            "avgpool: AdaptiveAvgPool2d (pooling) [kept]",
            "flatten: flatten (reshape) [kept]",
        ],
    ),
    "fc": ("Linear", "transform_unit", "1,290 (1.4%)", []),
}
# What leaves, channels of the reader included, on an image of 224×224 that the pools halve once; see the sums below.
REMOVES = {
    "conv2a": ("26,816 (30.1%)", "333,971,456 (29.8%)"),  # 8,192 weights of conv3; 112² × (64×32×9 + 64×128)
    "conv2b": ("59,584 (66.9%)", "745,013,248 (66.4%)"),  # the same of conv3; 112² × (64×32×25 + 64×128)
    "conv3": ("16,768 (18.8%)", "205,520,896 (18.3%)"),  # 112² × 128×128
}
CRITICAL = {
    "conv1": "reads the model's input; protect_io=False lets it go",
    "fc": "feeds the model's output; protect_io=False lets it go",
}


@pytest.fixture(scope="module")
def model():
    return randomised(ExampleModel())


@pytest.fixture(scope="module")
def pruner(model):
    """As in the seed: no argument but the model. Nothing here prunes it."""
    return UniversalLayerPruner(model)


def small(model):
    """A pruner of one's own, on a small image."""
    return UniversalLayerPruner(model, example_inputs=image())


# ---- the API ---------------------------------------------------------------------------------------------------------


def test_quick_prune_returns_a_smaller_model_of_the_same_class_that_runs(model):
    before = Photograph(model)
    pruned = quick_prune(model, reduction=0.3)
    assert type(pruned) is ExampleModel
    assert sum(p.numel() for p in pruned.parameters()) == NUM_PARAMS - 16_768  # conv3 and bn3, the most under 30 %
    assert run(pruned, image(3, size=10)).shape == (3, 10)
    assert Photograph(model).difference(before) == ""


def test_prune_returns_the_pruned_model_and_keeps_it_at_model(model):
    pruner = UniversalLayerPruner(model)
    assert pruner.model is model
    pruned = pruner.prune(max_param_reduction=0.3)
    assert pruned is pruner.model
    assert pruned is not model
    assert sum(p.numel() for p in pruned.parameters()) < NUM_PARAMS


def test_transform_layers_maps_names_to_what_the_layers_are(pruner):
    layers = pruner.transform_layers
    assert list(layers) == ["conv1", "conv2a", "conv2b", "conv3", "fc"]
    assert {info.kind for info in layers.values()} == {"transform"}
    assert {name: (info.type_name, info.num_params) for name, info in layers.items()} == {
        "conv1": ("Conv2d", 896),
        "conv2a": ("Conv2d", 18_496),
        "conv2b": ("Conv2d", 51_264),
        "conv3": ("Conv2d", 16_512),
        "fc": ("Linear", 1_290),
    }


# ---- groups ----------------------------------------------------------------------------------------------------------


def test_groups_come_by_impact_and_the_critical_ones_last(pruner):
    impacts = [group.impact for group in pruner.groups]
    verdicts = [group.can_remove for group in pruner.groups]
    assert impacts == sorted(impacts)
    assert verdicts == sorted(verdicts, reverse=True)
    assert [g.name for g in pruner.groups if not g.can_remove] == ["conv1", "fc"]


@pytest.mark.parametrize("name", EXPECTED)
def test_each_group_has_the_members_kinds_and_type_of_the_seed(pruner, name):
    group = next(g for g in pruner.groups if g.lead_transform.name == name)
    type_name, group_type, _, members = EXPECTED[name]
    assert (group.lead_transform.type_name, group.lead_transform.kind) == (type_name, "transform")
    assert [str(layer) for layer in group.layers[1:]] == [member.removesuffix(" [kept]") for member in members]
    assert group.layers[0] == group.lead_transform
    assert group.type == group_type
    assert group.can_remove == (name not in CRITICAL)
    assert group.reason == CRITICAL.get(name, "")


def test_critical_groups_have_infinite_impact_and_safe_ones_a_finite_one(pruner):
    for group in pruner.groups:
        assert (group.impact == float("inf")) == (group.name in CRITICAL)
        assert group.impact > 0


# ---- the printed plan ------------------------------------------------------------------------------------------------


def block(text, name):
    """The lines that the printed plan gives one group."""
    blocks = [part.splitlines() for part in text.split("\n\n")]
    return next(lines for lines in blocks if len(lines) > 1 and lines[1].startswith(f"  Lead Transform: {name} "))


def test_behind_the_first_screen_the_plan_begins_as_the_seed_does(pruner, capsys):
    assert pruner.print_plan() is None
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("")
    assert first <= 13
    lines = lines[first + 1 :]
    assert lines[0] == "PRUNING GROUPS (each starting from a transform layer):"
    assert lines[1] == "-" * 80
    assert lines[2] == ""
    assert re.fullmatch(r"Group 0: ✓ SAFE TO REMOVE", lines[3])


@pytest.mark.parametrize("name", EXPECTED)
def test_the_plan_prints_each_group_line_by_line(pruner, capsys, name):
    pruner.print_plan()
    group = next(g for g in pruner.groups if g.name == name)
    type_name, group_type, params, members = EXPECTED[name]
    impact = "inf" if name in CRITICAL else f"{group.impact:.3f}"
    marker = "✗ CRITICAL" if name in CRITICAL else "✓ SAFE TO REMOVE"
    expected = [
        f"Group {pruner.groups.index(group)}: {marker}",
        f"  Lead Transform: {name} ({type_name})",
        f"  Type: {group_type}",
        f"  Impact Score: {impact}",
        f"  Parameters: {params}",
        *(f"  {what}: {size}" for what, size in zip(("Removes", "MACs"), REMOVES.get(name, ()), strict=False)),
        f"  Layers ({len(members) + 1}):",
        f"    ★ {name}: {type_name} (transform)",
        *(f"    → {member}" for member in members),
    ]
    if name in CRITICAL:
        expected.append(f"  Reason: {CRITICAL[name]}")
    assert block(capsys.readouterr().out, name) == expected


def test_the_plan_says_where_its_inputs_came_from(pruner):
    assert any("inferred" in note and "conv1" in note for note in pruner.notes)
    assert "inferred" in pruner.render_plan()


# ---- what is left ----------------------------------------------------------------------------------------------------


def without(model, branch):
    """The example network with one branch crossed out by hand, and the matching half of conv3's input with it."""

    def forward(x):
        x = model.pool1(model.relu1(model.bn1(model.conv1(x))))
        if branch == "conv2a":
            x, kept = model.bn2b(model.conv2b(x)), slice(64, 128)
        else:
            x, kept = model.relu2a(model.bn2a(model.conv2a(x))), slice(0, 64)
        x = F.conv2d(x, model.conv3.weight[:, kept], model.conv3.bias)
        x = model.avgpool(model.relu3(model.bn3(x))).flatten(1)
        return model.fc(x)

    return forward


@pytest.mark.parametrize(("branch", "num_removed"), [("conv2a", 18_624 + 8_192), ("conv2b", 51_392 + 8_192)])
def test_without_a_branch_the_output_is_that_of_a_net_written_by_hand(model, branch, num_removed):
    pruned = small(model).prune(groups=[branch])
    x = image(3, size=12, seed=5)
    with torch.no_grad():
        expected = without(model, branch)(x)
    assert close(run(pruned, x), expected, 1e-5)
    assert pruned.conv3.weight.shape == (128, 64, 1, 1)
    assert pruned.conv3.in_channels == 64
    assert sum(p.numel() for p in pruned.parameters()) == NUM_PARAMS - num_removed
    gone = [key for key in model.state_dict() if key.split(".")[0] in (branch, branch.replace("conv", "bn"))]
    assert list(pruned.state_dict()) == [key for key in model.state_dict() if key not in gone]


def test_without_conv3_the_pool_and_the_flatten_behind_it_stay(model):
    pruner = small(model)
    plan = pruner.plan(groups=["conv3"])
    assert plan.removals[0].kept == ("avgpool", "flatten")
    pruned = pruner.prune(plan=plan)
    x = image(3, size=12, seed=5)
    with torch.no_grad():
        stem = model.pool1(model.relu1(model.bn1(model.conv1(x))))
        both = torch.cat([model.relu2a(model.bn2a(model.conv2a(stem))), model.bn2b(model.conv2b(stem))], 1)
        expected = model.fc(both.mean((2, 3)))
    assert close(run(pruned, x), expected, 1e-5)


def test_both_branches_of_the_concat_never_leave_together(model):
    pruner = small(model)
    for percent in range(10, 100, 5):
        plan = pruner.plan(max_param_reduction=percent / 100)
        chosen = {name for removal in plan.removals for name in removal.groups}
        assert not {"conv2a", "conv2b"} <= chosen
        assert plan.num_params_before - plan.num_params_after <= percent / 100 * NUM_PARAMS


def test_a_large_budget_takes_the_larger_branch_and_the_layer_behind_it(model):
    pruner = small(model)
    plan = pruner.plan(max_param_reduction=0.9)
    assert {name for removal in plan.removals for name in removal.groups} == {"conv2b", "conv3"}
    pruned = pruner.prune(plan=plan)
    x = image(3, size=12, seed=5)
    with torch.no_grad():
        stem = model.pool1(model.relu1(model.bn1(model.conv1(x))))
        branch = model.relu2a(model.bn2a(model.conv2a(stem))).mean((2, 3))
        expected = F.linear(branch, model.fc.weight[:, :64], model.fc.bias)
    assert close(run(pruned, x), expected, 1e-5)
    assert isinstance(pruned.conv3, nn.Identity)
