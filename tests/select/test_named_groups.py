"""Named groups: what is named goes, with the least besides, however it is spelled; and nothing else is guessed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.errors import CalibrationError, CriticalGroupError, UnknownNameError
from models.nets import Net, close, conv, image, linear, randomised, rows, run


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), linear(8, 16), linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Towers(nn.Module):
    """Two towers of blocks, one behind the other: ``encoder.blocks.0`` and ``decoder.blocks.0`` end alike."""

    def __init__(self):
        super().__init__()
        self.stem = linear()
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList(Residual() for _ in range(2))
        self.head = linear()

    def forward(self, x):
        x = self.stem(x)
        for block in (*self.encoder.blocks, *self.decoder.blocks):
            x = block(x)
        return self.head(x)


BLOCK = 16 + (8 * 16 + 16) + (16 * 8 + 8)  # parameters of a Residual, the norm's 16 included


@pytest.fixture(scope="module")
def towers():
    return UniversalLayerPruner(randomised(Towers()), example_inputs=rows())


def gone(plan):
    return sorted(name for removal in plan.removals for name in removal.groups)


def lost(plan):
    return plan.num_params_before - plan.num_params_after


# ---- the least besides ----------------------------------------------------------------------------------------------


def u_net():
    """One level down and up: ``low.b`` keeps its shape; all of the lower level may leave the concat as well."""
    net = Net(
        lambda net, x: net.head(net.join(torch.cat([net.up(net.low(net.pool(net.stem(x)))), net.stem(x)], 1))),
        stem=conv(3, 4),
        pool=nn.MaxPool2d(2),
        low=nn.Sequential(conv(4, 6), nn.ReLU(), conv(6, 6), nn.ReLU()),
        up=nn.ConvTranspose2d(6, 4, 2, stride=2),
        join=conv(8, 4),
        head=conv(4, 2),
    )
    return randomised(net)


def test_a_group_that_can_leave_alone_leaves_alone_though_more_would_harm_less():
    model = u_net()
    with torch.no_grad():  # as good as nothing comes up from the lower level, so that to lose all of it harms least
        model.up.weight.mul_(1e-3)
        model.up.bias.mul_(1e-3)
    pruner = UniversalLayerPruner(model, example_inputs=image())
    least = min((r for r in pruner.removals if "low.2" in r.groups), key=lambda r: r.impact)
    assert set(least.groups) == {"low.0", "low.2", "up"}
    plan = pruner.plan(groups=["low.2"])
    assert gone(plan) == ["low.2"]
    assert lost(plan) == 6 * 6 * 9 + 6
    pruned, x = pruner.prune(plan=plan), image(3, seed=5)
    with torch.no_grad():
        stem = model.stem(x)
        low = F.relu(model.low[0](F.max_pool2d(stem, 2)))
        expected = model.head(model.join(torch.cat([model.up(F.relu(low) if _keeps_relu(pruned) else low), stem], 1)))
    assert close(run(pruned, x), expected)


def _keeps_relu(pruned):
    return isinstance(pruned.low[-1], nn.ReLU)


def test_only_what_has_to_leave_together_is_said_to():
    reasons = {g.name: g.reason for g in UniversalLayerPruner(u_net(), example_inputs=image()).groups}
    assert reasons["low.2"] == ""
    assert reasons["up"] == "leaves together with 'low.0', 'low.2'"


def test_of_a_branch_the_partner_leaves_along(towers):
    plan = towers.plan(groups=["encoder.blocks.1.up"])
    assert gone(plan) == ["encoder.blocks.1.down", "encoder.blocks.1.up"]


def test_where_the_least_do_not_hold_together_a_set_that_does_is_found():
    """Of the concat one operand has to stay; the whole element of the container may hand on its input."""
    joined = Net(lambda net, x: net.mix(torch.cat([net.a(x), net.b(x)], 1)), a=linear(), b=linear(), mix=linear(16, 8))
    net = Net(lambda net, x: net.head(net.body(net.stem(x))), stem=linear(), body=nn.Sequential(joined), head=linear())
    model = randomised(net)
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    assert gone(pruner.plan(groups=["body.0.a"])) == ["body.0.a"]
    plan = pruner.plan(groups=["body.0.a", "body.0.b"])
    assert gone(plan) == ["body.0.a", "body.0.b", "body.0.mix"]
    x = rows(3, seed=5)
    with torch.no_grad():
        assert close(run(pruner.prune(plan=plan), x), model.head(model.stem(x)))


def test_both_groups_of_a_branch_leave_as_the_branch_where_that_harms_less_than_each_by_itself():
    """Either layer of the branch could hand its input on; that of both would leave ``x + relu(x)``."""
    net = Net(lambda net, x: net.head(x + net.b(torch.relu(net.a(x)))), a=linear(), b=linear(), head=linear(8, 2))
    model = randomised(nn.Sequential(linear(), net))
    with torch.no_grad():  # a branch that hardly counts, of layers that do
        net.b.weight.mul_(1e-2)
        net.b.bias.mul_(1e-2)
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    assert {r.groups for r in pruner.removals} >= {("1.a",), ("1.b",), ("1.a", "1.b")}
    assert gone(pruner.plan(groups=["1.b"])) == ["1.b"]
    (removal,) = pruner.plan(groups=["1.a", "1.b"]).removals
    assert removal.groups == ("1.a", "1.b")


# ---- modules, patterns, objects -------------------------------------------------------------------------------------


def test_a_module_stands_for_all_groups_below_it_and_leaves_whole(towers):
    plan = towers.plan(groups=["encoder.blocks.1"])
    assert gone(plan) == ["encoder.blocks.1.down", "encoder.blocks.1.up"]
    assert lost(plan) == BLOCK
    assert gone(towers.plan(groups="decoder")) == [
        f"decoder.blocks.{i}.{part}" for i in (0, 1) for part in ("down", "up")
    ]


@pytest.mark.parametrize(
    "spelled",
    [
        "encoder.blocks[1]",
        "encoder/blocks/1",
        "self.encoder.blocks.1",
        "module.encoder.blocks.1",
        "_orig_mod.encoder.blocks.1",
        "encoder.blocks.1.up.weight",
        "encoder.blocks.1.*",
        "*coder.blocks.1.up*",
        "blocks.2",
    ],
)
def test_names_are_understood_however_they_are_spelled(towers, spelled):
    expected = {"*coder.blocks.1.up*": "encoder.blocks.1 decoder.blocks.1", "blocks.2": "encoder.blocks.2"}
    blocks = expected.get(spelled, "encoder.blocks.1").split()
    assert gone(towers.plan(groups=[spelled])) == sorted(
        f"{block}.{part}" for block in blocks for part in ("up", "down")
    )


def test_groups_layers_and_removals_are_taken_as_they_are(towers):
    group = next(g for g in towers.groups if g.name == "decoder.blocks.0.up")
    removal = next(r for r in towers.removals if "decoder.blocks.0.up" in r.groups)
    first = towers.plan(groups=group)
    assert gone(first) == ["decoder.blocks.0.down", "decoder.blocks.0.up"]
    assert towers.plan(groups=[group.lead_transform]) == first
    for given in (removal, [removal], removal.name, [first.removals[0]]):
        plan = towers.plan(groups=given)
        assert gone(plan) == ["decoder.blocks.0.down", "decoder.blocks.0.up"]
        assert lost(plan) == towers.removals[[r.name for r in towers.removals].index(plan.removals[0].name)].num_params
    assert [r.name for r in towers.plan(groups=removal).removals] == [removal.name]


# ---- what is refused ------------------------------------------------------------------------------------------------


def refusal(pruner, error, groups):
    with pytest.raises(error) as raised:
        pruner.plan(groups=groups)
    assert len(str(raised.value)) <= 300
    return str(raised.value)


def test_a_misspelt_name_is_answered_with_the_nearest(towers):
    assert "did you mean 'encoder.blocks.1.down'" in refusal(towers, UnknownNameError, ["encoder.blocks.1.dwn"])
    assert "did you mean 'encoder.blocks.1'" in refusal(towers, UnknownNameError, ["encodr.blocks.1"])


def test_a_name_that_several_modules_end_on_is_refused_with_their_names(towers):
    message = refusal(towers, UnknownNameError, ["blocks.0"])
    assert "'blocks.0' stands for 2 modules, 'decoder.blocks.0', 'encoder.blocks.0'" in message


def test_a_member_is_refused_with_the_name_of_its_group():
    pruner = UniversalLayerPruner(u_net(), example_inputs=image())
    assert "it is a layer of group 'low.0'" in refusal(pruner, UnknownNameError, ["low.1"])


def test_a_module_that_holds_a_critical_group_is_refused_with_the_reason():
    body = nn.Sequential(linear(8, 12), nn.Tanh(), linear(12, 12), nn.Tanh(), linear(12, 10))
    model = randomised(nn.Sequential(linear(), body, linear(10, 8)))
    pruner = UniversalLayerPruner(model, example_inputs=rows(), projections=False)
    message = refusal(pruner, CriticalGroupError, ["1"])
    assert message.startswith("group '1.0' of '1' cannot be removed: leaves only together with '2', which feeds")
    assert message.endswith("; of the others may go: 1.2")


@pytest.mark.parametrize(("given", "said"), [(0, "groups is 0"), ([0], "group 0 is"), ([None], "NoneType")])
def test_what_is_no_name_is_refused_as_such(towers, given, said):
    assert said in refusal(towers, UnknownNameError, given)


def test_a_removal_that_needs_data_is_refused_without():
    layers = (linear(8, 6), nn.Tanh(), linear(6, 9), nn.Tanh(), linear(9, 9), nn.Tanh(), linear(9, 2))
    pruner = UniversalLayerPruner(randomised(nn.Sequential(*layers)), example_inputs=rows())
    removal = next(r for r in pruner.removals if r.needs_calibration)
    assert "calibration=" in refusal(pruner, CalibrationError, removal)
    assert "calibration=" in refusal(pruner, CalibrationError, removal.groups)
