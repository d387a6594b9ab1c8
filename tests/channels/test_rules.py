"""Channel rules: what slicing a concat's operand asks of the layers behind it, on graphs of a few layers."""

import numpy as np
import pytest
import torch
from torch import nn

from layerprune.channels import ChannelGap, ChannelTrace
from layerprune.channels.rules import slice_layer
from layerprune.graph import Refusal
from models.hand_built import HandBuiltGraph


def gap_of(first, last, size, dim=1):
    missing = np.zeros(size, dtype=bool)
    missing[first:last] = True
    return ChannelGap(dim, missing)


def rule(module, gap, dims=4):
    """What a rule says of a module's own call: the side, and the ranges that are missing behind it."""
    shape = (2, 8, 4, 4)[:dims]
    net = HandBuiltGraph()
    params = {f"m.{name}": tuple(parameter.shape) for name, parameter in module.named_parameters()}
    graph = net.graph(net.module("m", "transform", net.input(*shape), params=params))
    found = slice_layer(module, graph.layers[0], gap, dims)
    return None if found is None else (found[0], None if found[1] is None else found[1].indices)


def behind_concat(body, modules, *, num=(4, 4)):
    """The slices, as text, once the first operand of a concat of two is dropped."""
    net = HandBuiltGraph()
    x = net.input(2, 3, 6, 6)
    a, b = (net.module(name, "transform", x, shape=(2, n, 6, 6)) for name, n in zip("ab", num, strict=True))
    joined = net.cat(a, b)
    out = body(net, joined)
    graph = net.graph(out)
    trace = ChannelTrace(graph, {"": nn.Module(), **modules}, frozenset({0}))
    return [(edit.fqn, edit.side, edit.dropped) for edit in trace.run([(2, a)])]


def conv(net, value, fqn="conv", shape=(2, 5, 6, 6)):
    return net.module(fqn, "transform", value, shape=shape, params={f"{fqn}.weight": (5, 8, 1, 1)})


# ---- one layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "dims", "expected"),
    [
        (nn.Conv2d(8, 5, 3), 4, ("in", None)),
        (nn.ConvTranspose2d(8, 5, 3), 4, ("in", None)),
        (nn.Conv2d(8, 16, 3, groups=8), 4, ("channels", ((0, 4),))),
        (nn.BatchNorm2d(8), 4, ("channels", ((0, 2),))),
        (nn.InstanceNorm2d(8), 4, ("channels", ((0, 2),))),
        (nn.GroupNorm(4, 8), 4, ("channels", ((0, 2),))),
        (nn.PReLU(8), 4, ("channels", ((0, 2),))),
        (nn.PReLU(), 4, ("", ((0, 2),))),
        (nn.Linear(8, 5), 2, ("in", None)),
        (nn.Identity(), 4, None),
    ],
    ids=lambda one: str(one) if isinstance(one, nn.Module) else None,
)
def test_the_first_two_of_eight_channels_go(module, dims, expected):
    assert rule(module, gap_of(0, 2, 8), dims) == expected


@pytest.mark.parametrize(
    ("module", "gap", "dims", "why"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), gap_of(0, 2, 8), 4, "whose groups would become uneven"),
        (nn.Conv2d(8, 8, 3), gap_of(0, 2, 4, dim=2), 4, "as something other than channels"),
        (nn.Linear(8, 5), gap_of(0, 2, 8), 4, "mixes another dimension"),
        (nn.GroupNorm(4, 8), gap_of(0, 1, 8), 4, "normalizes across channels"),
        (nn.GroupNorm(1, 8), gap_of(0, 2, 8), 4, "normalizes across channels"),
        (nn.LayerNorm(8), gap_of(0, 2, 8, dim=3), 4, "normalizes across channels"),
        (nn.BatchNorm2d(8), gap_of(0, 2, 4, dim=2), 4, "normalizes another dimension"),
        (nn.InstanceNorm1d(8), gap_of(0, 2, 8), 2, "normalizes another dimension"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 5, 3)), gap_of(0, 2, 8), 4, "computes its weight"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else None,
)
def test_what_cannot_lose_channels_says_why(module, gap, dims, why):
    with pytest.raises(Refusal, match=why):
        rule(module, gap, dims)


def test_a_subclass_with_a_forward_of_its_own_is_not_known():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + self.weight.sum()

    assert rule(Own(8, 5, 3), gap_of(0, 2, 8)) is None


# ---- behind a concat -------------------------------------------------------------------------------------------------


def test_the_convolution_behind_a_concat_loses_the_operands_channels():
    module = {"conv": nn.Conv2d(8, 5, 1)}
    assert behind_concat(conv, module) == [("conv", "in", ((0, 4),))]
    wide = {"conv": nn.Conv2d(8, 5, 1)}
    assert behind_concat(conv, wide, num=(2, 6)) == [("conv", "in", ((0, 2),))]


@pytest.mark.parametrize("name", ["relu", "gelu", "dropout", "max_pool2d", "interpolate", "to", "clone"])
def test_what_treats_channels_alike_is_passed(name):
    def body(net, value):
        return conv(net, net.function(name, value))

    assert behind_concat(body, {"conv": nn.Conv2d(8, 5, 1)}) == [("conv", "in", ((0, 4),))]


def test_a_norm_and_the_convolution_behind_it_lose_the_same():
    def body(net, value):
        return conv(net, net.module("bn", "normalization", value, params={"bn.weight": (8,)}))

    assert behind_concat(body, {"bn": nn.BatchNorm2d(8), "conv": nn.Conv2d(8, 5, 1)}) == [
        ("bn", "channels", ((0, 4),)),
        ("conv", "in", ((0, 4),)),
    ]


def test_a_second_concat_shifts_the_channels():
    net = HandBuiltGraph()
    x = net.input(2, 3, 6, 6)
    a = net.module("a", "transform", x, shape=(2, 4, 6, 6))
    b = net.module("b", "transform", x, shape=(2, 4, 6, 6))
    joined = net.cat(a, b)
    twice = net.cat(b, joined)
    graph = net.graph(conv(net, twice))
    trace = ChannelTrace(graph, {"conv": nn.Conv2d(12, 5, 1)}, frozenset({0}))
    assert [edit.dropped for edit in trace.run([(2, a)])] == [((4, 8),)]


def test_views_permutations_and_chunks_are_followed_on_numbered_elements():
    def body(net, value):
        flat = net.function("flatten", value, shape=(2, 8, 36), args=(2,))
        rows = net.function("transpose", flat, shape=(2, 36, 8), args=(1, 2))
        return net.module("fc", "transform", rows, shape=(2, 36, 5), params={"fc.weight": (5, 8)})

    assert behind_concat(body, {"fc": nn.Linear(8, 5)}) == [("fc", "in", ((0, 4),))]


def test_a_mean_over_places_is_passed_and_one_over_channels_is_not():
    def over(*dims):
        def body(net, value):
            shape = tuple(size for dim, size in enumerate((2, 8, 6, 6)) if dim not in dims)
            pooled = net.function("mean", value, shape=shape, args=(dims,))
            return net.module("fc", "transform", pooled, shape=(2, 5), params={"fc.weight": (5, 8)})

        return body

    assert behind_concat(over(2, 3), {"fc": nn.Linear(8, 5)}) == [("fc", "in", ((0, 4),))]
    with pytest.raises(Refusal, match="which cannot lose some of them"):
        behind_concat(over(1), {"fc": nn.Linear(6, 5)})


def test_a_sum_with_a_tensor_that_keeps_all_channels_is_refused():
    def body(net, value):
        other = net.module("c", "transform", 0, shape=(2, 8, 6, 6))
        return conv(net, net.function("add", value, other))

    with pytest.raises(Refusal, match="with a tensor that keeps all of them"):
        behind_concat(body, {"conv": nn.Conv2d(8, 5, 1)})


def test_a_sum_with_a_tensor_that_is_broadcast_passes():
    def body(net, value):
        other = net.function("mean", value, shape=(2, 8, 1, 1), args=((2, 3), True))
        return conv(net, net.function("add", value, other))

    assert behind_concat(body, {"conv": nn.Conv2d(8, 5, 1)}) == [("conv", "in", ((0, 4),))]


@pytest.mark.parametrize("name", ["cumsum", "my_function", "sort"])
def test_a_function_of_which_nothing_is_known_is_refused(name):
    def body(net, value):
        return conv(net, net.function(name, value))

    with pytest.raises(Refusal, match=f"pass through '{name}'"):
        behind_concat(body, {"conv": nn.Conv2d(8, 5, 1)})


def test_channels_that_reach_the_output_are_refused():
    with pytest.raises(Refusal, match="the channels of 'a' reach the model's output"):
        behind_concat(lambda net, value: net.function("relu", value), {})


def test_a_tied_weight_is_refused():
    def body(net, value):
        first = conv(net, value)
        net.tie("other.weight", "conv.weight")
        return net.module("other", "transform", first, params={"other.weight": (5, 8, 1, 1)})

    with pytest.raises(Refusal, match=r"'conv\.weight' is tied to another layer"):
        behind_concat(body, {"conv": nn.Conv2d(8, 5, 1), "other": nn.Conv2d(8, 5, 1)})


def test_a_layer_called_twice_has_to_lose_the_same_channels_at_both_calls():
    def body(net, value):
        first = conv(net, value, shape=(2, 8, 6, 6))
        return conv(net, first, shape=(2, 8, 6, 6))

    with pytest.raises(Refusal, match="'conv' is called several times"):
        behind_concat(body, {"conv": nn.Conv2d(8, 8, 1)})


def test_a_gap_leaves_the_channels_that_stay():
    assert gap_of(0, 2, 4).without(torch.arange(8).view(2, 4)).tolist() == [[2, 3], [6, 7]]
