"""Nets whose layers may go, though the forward calls them in a loop, cuts them up, or calls them as functions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from models.nets import Net, close, conv, image, linear, parameter, randomised, rows, run, tokens


def prepared(net, *inputs, **options):
    return UniversalLayerPruner(randomised(net), example_inputs=inputs, **options)


def without(pruner, name, *inputs):
    """What the model computes after the removal of that name."""
    (removal,) = (removal for removal in pruner.removals if removal.name == name)
    return run(pruner.prune(groups=[removal], repair=None), *inputs)


# ---- functions -------------------------------------------------------------------------------------------------------


def test_a_depthwise_convolution_that_is_a_function_is_a_transform():
    def forward(net, x):
        x = net.stem(x)
        return net.head(x + F.conv2d(x, net.kernel, padding=1, groups=4))

    pruner = prepared(Net(forward, stem=conv(3, 4), kernel=parameter(4, 1, 3, 3), head=conv(4, 2)), image())
    assert pruner.transform_layers["conv2d"].num_params == 36
    net = pruner.model
    assert close(run(pruner.prune(groups=["conv2d"]), image()), run(net.head, run(net.stem, image())))


def test_a_scale_per_channel_is_no_transform():
    net = Net(lambda net, x: net.head(net.stem(x) * net.scale), stem=conv(3, 4), scale=parameter(4, 1, 1), head=conv(4))
    assert set(prepared(net, image()).transform_layers) == {"stem", "head"}


@pytest.mark.parametrize("pool", [lambda x: F.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2, stride=2, ceil_mode=True)])
def test_a_projection_goes_through_a_pool_that_is_a_function(pool):
    def forward(net, x):
        return net.head(net.c(pool(torch.relu(net.b(net.a(x))))).mean((2, 3)))

    net = Net(forward, a=conv(3, 4), b=conv(4, 6), c=conv(6, 8), head=linear(8, 3))
    pruner = prepared(net, image(), calibration=[image(16, seed=seed) for seed in range(3)])
    names = {removal.name for removal in pruner.removals if removal.needs_calibration and removal.groups == ("b",)}
    assert names == {"b projected from a"}


def test_what_really_stands_in_the_way_of_a_projection_is_the_reason():
    """The pool would do, the flatten behind it would not."""

    def forward(net, x):
        return net.head(F.max_pool2d(torch.relu(net.b(net.a(x))), 2).flatten(1))

    groups = prepared(Net(forward, a=conv(3, 4), b=conv(4, 6), head=linear(96, 3)), image()).groups
    (reason,) = (group.reason for group in groups if group.name == "b")
    assert "'flatten'" in reason
    assert "max_pool2d" not in reason


def test_any_term_of_pythons_sum_may_leave():
    """The first is added to the number 0."""

    def forward(net, x):
        x = net.stem(x)
        return net.head(sum(branch(x) for branch in (net.a, net.b, net.c)))

    pruner = prepared(Net(forward, stem=linear(), a=linear(), b=linear(), c=linear(), head=linear(8, 3)), rows())
    net, x = pruner.model, run(pruner.model.stem, rows())
    for name in "abc":
        left = [getattr(net, other) for other in "abc" if other != name]
        assert close(run(pruner.prune(groups=[name]), rows()), run(net.head, left[0](x) + left[1](x)))


# ---- loops -----------------------------------------------------------------------------------------------------------


def injecting(net, x):
    x = net.stem(x)
    u = net.inject(x)
    z = x
    for _ in range(3):
        z = torch.tanh(net.f(z)) + u
    return net.head(z)


def test_what_a_loop_adds_each_time_may_leave_or_stay_alone():
    pruner = prepared(Net(injecting, stem=linear(), inject=linear(), f=linear(), head=linear(8, 3)), rows())
    net, x = pruner.model, run(pruner.model.stem, rows())
    assert close(without(pruner, "add_2 without tanh_2", rows()), run(net.head, run(net.inject, x)))
    z = x
    for _ in range(3):
        z = torch.tanh(run(net.f, z))
    assert close(without(pruner, "3 merges without inject", rows()), run(net.head, z))


def test_a_tied_layer_whose_every_call_hands_its_own_input_on_leaves():
    def forward(net, x):
        x = net.stem(x)
        for _ in range(3):
            x = net.g(torch.relu(net.f(x)))
        return net.head(x)

    pruner = prepared(Net(forward, stem=linear(), f=linear(), g=linear(), head=linear(8, 3)), rows())
    net, x = pruner.model, run(pruner.model.stem, rows())
    y = x
    for _ in range(3):
        y = run(net.g, torch.relu(y))
    assert close(run(pruner.prune(groups=["f"]), rows()), run(net.head, y))
    y = x
    for _ in range(3):
        y = torch.relu(run(net.f, y))
    assert close(run(pruner.prune(groups=["g"]), rows()), run(net.head, y))


# ---- pieces ----------------------------------------------------------------------------------------------------------


def test_a_branch_that_is_read_piece_by_piece_leaves_with_all_its_merges():
    def forward(net, x):
        x = net.stem(x)
        branch = net.b(torch.relu(net.a(x)))
        z = net.c(x)[:, 0]
        for i in range(5):
            z = z + branch[:, i]
        return net.head(z)

    parts = {"stem": linear(), "a": linear(8, 6), "b": linear(6, 4), "c": linear(8, 4), "head": linear(4, 3)}
    pruner = prepared(Net(forward, **parts), tokens())
    net, x = pruner.model, run(pruner.model.stem, tokens())
    assert close(without(pruner, "5 merges without b", tokens()), run(net.head, run(net.c, x)[:, 0]))


def test_a_gate_that_a_scan_reads_slice_by_slice_leaves():
    def forward(net, x):
        x = net.stem(x)
        gate, value = torch.sigmoid(net.gate(x)), net.value(x)
        h, states = value[:, 0], []
        for t in range(5):
            h = gate[:, t] * h + value[:, t]
            states.append(h)
        return net.head(torch.stack(states, 1))

    pruner = prepared(Net(forward, stem=linear(), gate=linear(8, 4), value=linear(8, 4), head=linear(4, 3)), tokens())
    net, x = pruner.model, run(pruner.model.stem, tokens())
    value = run(net.value, x)
    states = value[:, :1] + value.cumsum(1)  # with a gate of 1 everywhere
    assert close(run(pruner.prune(groups=["gate"]), tokens()), run(net.head, states))


def test_two_gates_of_one_layer_leave_together():
    """As the modulation of a diffusion transformer's block: chunks of one linear layer's output scale two branches."""

    def forward(net, x):
        x = net.stem(x)
        first, second = torch.sigmoid(net.modulation(x)).chunk(2, -1)
        x = x + first * net.a(x)
        return net.head(x + torch.tanh(net.b(x)) * second)

    parts = {"stem": linear(), "modulation": linear(8, 16), "a": linear(), "b": linear(), "head": linear(8, 3)}
    pruner = prepared(Net(forward, **parts), rows())
    net, x = pruner.model, run(pruner.model.stem, rows())
    x = x + run(net.a, x)
    assert close(without(pruner, "2 merges without sigmoid", rows()), run(net.head, x + torch.tanh(run(net.b, x))))


def test_a_piece_that_is_returned_keeps_its_branch():
    def forward(net, x):
        first, second = net.both(net.stem(x)).chunk(2, -1)
        y = net.c(x) + first
        return net.head(y + torch.tanh(y) + second), second

    parts = {"stem": linear(), "both": linear(8, 16), "c": linear(), "head": linear(8, 3)}
    pruner = prepared(Net(forward, **parts), rows(), protect_io=False)
    assert not any("both" in removal.groups for removal in pruner.removals)
