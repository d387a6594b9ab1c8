"""Channels followed through groups, shuffles, splits and functional layers; heads in training; shared modules."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.edits import Slice
from layerprune.errors import CriticalGroupError
from oracle.checks import Oracle


class Net(nn.Module):
    """A stem, two branches that a concat joins, what the case does with the join, and a head."""

    def __init__(self, body: nn.Module, *, a: int = 8, b: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Conv2d(6, a, 3, padding=1)
        self.b = nn.Conv2d(6, b, 3, padding=1)
        self.body = body
        self.mix = nn.LazyConv2d(6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.head(torch.relu(self.mix(self.body(x))).mean((2, 3)))


class Norm(nn.BatchNorm2d):
    """A batch norm written out, as libraries do that put an activation behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(x)


class SameConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, groups=self.groups)


class StandardConv(nn.Conv2d):
    """Standardises its weights over the input channels: with fewer of these the others would change."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class Chunks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        return one * torch.sigmoid(other)


class Shuffle(nn.Module):
    """Interleaves two halves of the channels, with sizes taken from the shape."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Pairs(nn.Module):
    """Takes neighbours together, so that every other channel stays one."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 2, 2, h, w).flip(2).flatten(1, 2)


class Numbers(nn.Module):
    """Takes channels by numbers of its own, which are others once channels before them are gone."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 4:12]


class Masked(nn.Module):
    """Chooses each element by a mask of places, or of channels: the latter keeps all of them."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.act = nn.Tanh()
        self.register_buffer("mask", torch.arange(math.prod(shape)).view(shape) % 3 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, x, self.act(x))


class Twice(nn.Module):
    """Two concats, of which the second joins both tensors in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(x)], 1)


#: What stands behind the concat → the groups among a and b that must be safe, in order.
CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16), "ab"),
    "depthwise, two of each": (lambda: nn.Conv2d(16, 32, 3, padding=1, groups=16), "ab"),
    "whole groups": (lambda: nn.Conv2d(16, 8, 3, padding=1, groups=4), "ab"),
    "two groups": (lambda: nn.Conv2d(16, 6, 3, padding=1, groups=2), "ab"),
    "transposed": (lambda: nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2), "ab"),
    "group norm of whole groups": (lambda: nn.GroupNorm(4, 16), "ab"),
    "group norm across": (lambda: nn.GroupNorm(1, 16), ""),
    "functional batch norm": (lambda: Norm(16), "ab"),
    "padded by itself": (lambda: SameConv(16, 4, 3), "ab"),
    "standardised weights": (lambda: StandardConv(16, 4, 3), ""),
    "softmax over channels": (lambda: nn.Softmax(dim=1), ""),
    "halves": (Chunks, ""),
    "shuffle": (Shuffle, ""),
    "shuffle and back": (lambda: nn.Sequential(nn.ChannelShuffle(8), nn.ChannelShuffle(2)), ""),
    "neighbours": (Pairs, "ab"),
    "numbers of its own": (Numbers, "b"),  # without a, 4 to 12 are other channels; without b there are four left
    "grouped, joined again": (Twice, "ab"),
    "chosen by places": (lambda: Masked(8, 8), "ab"),
    "chosen by channels": (lambda: Masked(16, 1, 1), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_a_branch_of_a_concat_leaves_through_what_stands_behind_it(name: str) -> None:
    make, safe = CASES[name]
    torch.manual_seed(0)
    net = Net(make())
    net(torch.randn(2, 3, 8, 8))
    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.running_mean)
    oracle = Oracle(net, ((_randn(2, 3, 8, 8),), {}), ((_randn(3, 3, 8, 8),), {}))
    for removal in oracle.pruner.removals:
        oracle.check_removal(removal)
    found = {group.name for group in oracle.pruner.groups if group.can_remove}
    assert "".join(sorted(found & {"a", "b"})) == safe
    if safe:
        oracle.check_plan(oracle.pruner.plan(groups=[safe[0]]))


class Woven(nn.Module):
    """Each of two groups reads both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.conv, self.head = nn.Conv2d(16, 6, 1, groups=2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        a, b = self.a(x), self.b(x)
        return self.head(torch.relu(self.conv(torch.cat([a, b, a, b], 1))))


def test_a_slice_of_a_grouped_convolution_takes_as_many_channels_of_each_group() -> None:
    torch.manual_seed(0)
    net = Woven().double().eval()
    oracle = Oracle(net, ((_randn(2, 3, 4, 4),), {}), ((_randn(3, 3, 4, 4),), {}))
    for removal in oracle.pruner.removals:
        oracle.check_removal(removal)
    sliced = {
        removal.groups: edit for removal in oracle.pruner.removals for edit in removal.edits if edit.kind == "slice"
    }
    assert sliced == {
        ("a",): Slice(fqn="conv", side="in", dropped=((0, 4), (8, 12))),
        ("b",): Slice(fqn="conv", side="in", dropped=((4, 8), (12, 16))),
    }
    plan = oracle.pruner.plan(groups=["a"])
    oracle.check_plan(plan)
    assert plan.apply(net).conv.weight.shape == (6, 4, 1, 1)


class Trains(nn.Module):
    """An auxiliary head that reads a concat, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)
        self.aux = nn.Sequential(nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
        self.mix, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        joined = torch.cat([self.a(x), self.b(x)], 1)
        out = self.head(self.mix(joined).mean((2, 3)))
        return (out, self.aux(joined)) if self.training else out


def test_a_head_that_runs_in_training_only_loses_the_channels_too() -> None:
    torch.manual_seed(0)
    net = Trains().double().eval()
    oracle = Oracle(net, ((_randn(2, 3, 9, 9),), {}), ((_randn(3, 3, 9, 9),), {}))
    plan = oracle.pruner.plan(groups=["a"])
    oracle.check_plan(plan)
    pruned = plan.apply(net).train()
    out, aux = pruned(_randn(4, 3, 9, 9))
    assert aux.shape == out.shape == (4, 5)
    assert pruned.aux[3].in_features == 2


class Shared(nn.Module):
    """One attention-like module, called at three depths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.own = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for own in self.own:
            x = x + torch.tanh(self.shared(x))
            x = x + own(torch.relu(x))
        return self.head(x)


def test_a_module_called_several_times_leaves_at_all_its_calls() -> None:
    torch.manual_seed(0)
    oracle = Oracle(Shared().double().eval(), ((_randn(2, 4),), {}), ((_randn(3, 4),), {}))
    (removal,) = [r for r in oracle.pruner.removals if r.groups == ("shared",)]
    assert removal.kind == "shared"
    assert removal.num_params == 42
    oracle.check_removal(removal)


class Mlp(nn.Module):
    """Ends in a parameter of its own, for which there is no module that could be taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gamma = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x))) * self.gamma


class TwoNames(nn.Module):
    """One module under two names, of which both are called, or one."""

    def __init__(self, num_calls: int) -> None:
        super().__init__()
        self.num_calls = num_calls
        self.stem, self.own, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.one = self.two = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.one(x)
        x = x + self.own(torch.relu(x))
        if self.num_calls == 2:
            x = x + self.two(torch.relu(x))
        return self.head(x)


@pytest.mark.parametrize(
    ("num_calls", "expected"),
    [
        (1, {"branch": ("one.fc1", "one.fc2"), "bypass": ("one.fc2",)}),
        (2, {"shared": ("one.fc1", "one.fc2")}),
    ],
)
def test_several_names_of_one_module_are_no_tie(num_calls: int, expected: dict[str, tuple[str, ...]]) -> None:
    torch.manual_seed(0)
    oracle = Oracle(TwoNames(num_calls).double().eval(), ((_randn(2, 4),), {}), ((_randn(3, 4),), {}))
    for removal in oracle.pruner.removals:
        oracle.check_removal(removal)
    found = {(removal.kind, removal.groups) for removal in oracle.pruner.removals}
    assert found >= set(expected.items())
    oracle.check_plan(oracle.pruner.plan(groups=["one.fc1", "one.fc2"]))


class Lent(nn.Module):
    """Its module belongs to other blocks, too."""

    def __init__(self, lent: nn.Module) -> None:
        super().__init__()
        self.lent, self.lin, self.own = lent, nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.lin(self.lent(x))
        return x + self.own(torch.relu(x))


class Lender(nn.Module):
    def __init__(self, num_calls: int) -> None:
        super().__init__()
        self.num_calls = num_calls
        lent = Mlp()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList([Lent(lent) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks[: self.num_calls]:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("num_calls", [1, 2, 3])
def test_a_module_of_several_blocks_leaves_when_its_last_caller_does(num_calls: int) -> None:
    torch.manual_seed(0)
    net = Lender(num_calls).double().eval()
    oracle = Oracle(net, ((_randn(2, 4),), {}), ((_randn(3, 4),), {}))
    for removal in oracle.pruner.removals:
        oracle.check_removal(removal)
    branches = [r for r in oracle.pruner.removals if r.kind == "branch" and any(g.endswith(".lin") for g in r.groups)]
    plan = oracle.pruner.plan(groups=branches)
    assert {name for r in plan.removals for name in r.groups} >= {f"blocks.{i}.lin" for i in range(num_calls)}
    oracle.check_plan(plan)
    pruned = plan.apply(net)
    assert not any("lent" in name for name, _ in pruned.named_parameters())


class Looks(Lent):
    """Asks what it borrowed for the shape of its result."""

    def forward(self, x: Tensor) -> Tensor:
        lent = self.lent(x)
        x = x + self.lin(lent)
        return x.view(lent.shape) + self.own(torch.relu(x))


def test_the_shape_of_a_shared_modules_result_is_read_under_another_name() -> None:
    net = Lender(2)
    net.blocks[1] = Looks(net.blocks[0].lent)
    pruner = UniversalLayerPruner(net.eval(), example_inputs=torch.randn(2, 4))
    message = r"the forward of 'blocks.1' reads the shape of 'blocks.1.lent.mul' 2×6, which would be gone"
    branches = [r for r in pruner.removals if r.kind == "branch" and any(g.endswith(".lin") for g in r.groups)]
    with pytest.raises(CriticalGroupError, match=message):
        pruner.plan(groups=branches)
    by_name = pruner.plan(groups=["blocks.0.lin", "blocks.1.lin"])
    assert [r.kind for r in by_name.removals] == ["bypass", "bypass"], "named, each leaves with the least besides"


class Mix(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Tied(nn.Module):
    """Two modules that hold one parameter; the second one is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        weight = nn.Parameter(torch.randn(6, 6))
        self.one, self.two = Mix(weight), Mix(weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.one(x))


def test_a_parameter_of_two_modules_is_a_tie() -> None:
    pruner = UniversalLayerPruner(Tied().eval(), example_inputs=torch.randn(2, 4))
    (group,) = [group for group in pruner.groups if group.name == "one"]
    assert group.reason == "its parameter 'one.weight' is tied to 'two.weight'"


class Narrow(nn.Module):
    """A layer of fewer channels, whose weight another module holds, or the forward reads once more."""

    def __init__(self, *, held: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(3, 2)
        self.one = Mix(nn.Parameter(torch.randn(6, 3)))
        self.two = Mix(self.one.weight) if held else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.head(torch.relu(self.one(x))), x if self.two is not None else x @ self.one.weight


@pytest.mark.parametrize(("held", "tied"), [(True, "tied to 'two.weight'"), (False, "also used by 'matmul'")])
def test_a_tie_is_said_beside_the_reason_that_comes_first(held: bool, tied: str) -> None:
    pruner = UniversalLayerPruner(Narrow(held=held).eval(), example_inputs=torch.randn(2, 4), projections=False)
    (group,) = [group for group in pruner.groups if group.name == "one"]
    shapes = "changes 6 channels to 3 and nothing of that shape exists before it"
    assert group.reason == f"{shapes}; its parameter 'one.weight' is {tied}"


class Borrowed(nn.Module):
    """The forward reads the weight of a module that has two names, and that it also calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.one = self.two = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.one(x)
        return self.head(F.linear(torch.relu(x), self.one.weight))


def test_a_module_whose_weight_is_read_elsewhere_stays_under_all_its_names() -> None:
    pruner = UniversalLayerPruner(Borrowed().eval(), example_inputs=torch.randn(2, 4))
    (group,) = [group for group in pruner.groups if group.name == "one"]
    assert group.reason == "its parameter 'one.weight' is also used by 'linear'"


class Lengths(nn.Module):
    """Takes its sizes from values: as many tokens of each sample as its length says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.stem(torch.cat([row[:n] for row, n in zip(x, lengths.tolist(), strict=True)]))
        return self.head(x + self.mid(x))


def test_sizes_that_follow_from_integers_are_known_without_values_of_weights() -> None:
    with torch.device("meta"):
        net = Lengths()
    example = torch.empty(2, 5, 4, device="meta"), torch.tensor([3, 5])
    pruner = UniversalLayerPruner(net, example_inputs=example)
    assert {group.name: group.can_remove for group in pruner.groups} == {"stem": False, "mid": True, "head": False}


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)
