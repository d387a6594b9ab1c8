"""Parameters in odd places: lists and dicts of them, holders of many names, classes that keep some to themselves."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.modules import num_params
from models.nets import Net, Photograph, close, conv, image, linear, parameter, rows, run


def matrices(*sizes: int) -> nn.ParameterList:
    """The weights of a chain of linears."""
    return nn.ParameterList(parameter(after, before) for before, after in pairwise(sizes))


# ---- lists and dicts -------------------------------------------------------------------------------------------------


def chain(net, x):
    for weight in net.weights:
        x = torch.relu(F.linear(x, weight))
    return x


def test_each_weight_of_a_list_leads_a_group_of_its_own():
    net = Net(chain, weights=matrices(8, 8, 8, 8, 3)).eval()
    pruner = UniversalLayerPruner(net, example_inputs=rows())
    safe = {group.name: group.can_remove for group in pruner.groups}
    assert safe == {"weights.0": False, "weights.1": True, "weights.2": True, "weights.3": False}
    pruned = pruner.prune(groups=["weights.1"])
    by_hand = F.relu(rows() @ net.weights[0].T)
    for weight in (net.weights[2], net.weights[3]):
        by_hand = F.relu(by_hand @ weight.T)
    assert close(run(pruned, rows()), by_hand)
    assert num_params(pruned) == num_params(net) - 64


def test_a_pattern_protects_one_weight_of_a_dict_or_all_of_them():
    held = nn.ParameterDict({"first": parameter(8, 8), "second": parameter(8, 8)})
    net = Net(lambda net, x: net.b(F.linear(F.linear(net.a(x), net.held["first"]), net.held["second"])), a=linear(), held=held, b=linear(8, 3)).eval()  # fmt: skip  # noqa: E501

    def safe(**options):
        groups = UniversalLayerPruner(net, example_inputs=rows(), **options).groups
        return {group.name for group in groups if group.can_remove}

    assert safe() == {"held.first", "held.second"}
    assert safe(protect="held.first") == {"held.second"}
    assert safe(protect="held") == set()


def test_one_weight_of_a_list_that_several_calls_use_leads_one_group():
    net = Net(lambda net, x: net.c(F.linear(F.linear(F.linear(net.a(x), net.w[0]), net.w[1]), net.w[0])), a=linear(), w=matrices(8, 8, 8), c=linear(8, 3)).eval()  # fmt: skip  # noqa: E501
    groups = {group.name: len(group.calls) for group in UniversalLayerPruner(net, example_inputs=rows()).groups}
    assert groups == {"a": 1, "w.0": 2, "w.1": 1, "c": 1}


def test_a_projection_is_folded_into_a_weight_whose_bias_lies_in_another_list():
    """The bias has the weight's key: it is no other name of the weight."""

    def forward(net, x):
        for weight, bias in zip(net.weights, net.biases, strict=True):
            x = torch.tanh(F.linear(x, weight, bias))
        return x

    biases = nn.ParameterList(parameter(size) for size in (8, 12, 4, 3))
    net = Net(forward, weights=matrices(6, 8, 12, 4, 3), biases=biases).eval()
    pruner = UniversalLayerPruner(net, example_inputs=rows(width=6), calibration=[rows(64, 6, seed=s) for s in (1, 2)])
    projected = [removal for removal in pruner.removals if removal.needs_calibration]
    assert projected
    for removal in projected:
        pruned = pruner.prune(groups=removal.groups, repair=None)
        assert run(pruned, rows(width=6)).shape == (4, 3)
        assert num_params(pruned) == num_params(net) - removal.num_params


# ---- one module under many names -------------------------------------------------------------------------------------


class Turned(nn.Module):
    """Adds angles that it computes once, and keeps: later forwards do not use its parameter."""

    def __init__(self):
        super().__init__()
        self.angles = parameter(8)
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.angles.detach() * 2
        return x + self.kept


class TurnedBranch(nn.Module):
    def __init__(self, turn):
        super().__init__()
        self.inner, self.turn = linear(), turn

    def forward(self, x):
        return x + self.turn(torch.tanh(self.inner(x)))


def test_a_parameter_that_other_layers_hold_too_stays_with_them():
    turn = Turned()
    net = nn.Sequential(linear(), TurnedBranch(turn), TurnedBranch(turn), linear(8, 3)).eval()
    net(rows())
    pruner = UniversalLayerPruner(net, example_inputs=rows())
    one = pruner.prune(groups=["1.inner"])
    assert num_params(one) == num_params(net) - 72
    assert close(run(one, rows()), net[3](net[2](net[0](rows()))))
    both = pruner.prune(groups=["1.inner", "2.inner"])
    assert num_params(both) == num_params(net) - 2 * 72 - 8


# ---- what a class tells of its parameters ----------------------------------------------------------------------------


class Learner(nn.Module):
    """Gives an optimiser its head only, as meta-learners do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = linear(), linear(), linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        return self.head(x + torch.relu(self.b(x)))

    def parameters(self, recurse=True):
        return self.head.parameters(recurse)

    def named_parameters(self, *args, **kwargs):
        return self.head.named_parameters(*args, **kwargs)


def test_parameters_that_a_class_does_not_list_are_counted_and_removed():
    net = Learner().eval()
    pruner = UniversalLayerPruner(net, example_inputs=rows())
    assert pruner.graph.num_params == 2 * 72 + 18
    pruned = pruner.prune(groups=["b"])
    assert close(run(pruned, rows()), net.head(net.a(rows())))
    assert num_params(pruned) == 72 + 18


# ---- parameters that a forward writes into ---------------------------------------------------------------------------


@pytest.mark.parametrize("calibrated", [False, True])
def test_running_statistics_that_are_parameters_stay_as_they_were(calibrated):
    """The operation behind ``F.batch_norm`` does not declare that it writes into them."""

    def forward(net, x):
        x = F.batch_norm(net.a(x), net.mean, net.var, training=True)
        return net.c(x + torch.relu(net.b(x)))

    held = {"mean": torch.zeros(8), "var": torch.ones(8)}
    net = Net(forward, a=conv(3, 8), b=conv(8), c=conv(8, 2), **{k: nn.Parameter(v, False) for k, v in held.items()})
    before = Photograph(net.eval())
    batches = [image(4, seed=seed) for seed in range(3)] if calibrated else None
    pruner = UniversalLayerPruner(net, example_inputs=image(), calibration=batches)
    assert {"mean", "var"} == pruner.graph.written_params
    pruned = pruner.prune(groups=["b"], repair=None)
    assert before == Photograph(net)
    assert close(
        run(pruned, image()), net.c(F.batch_norm(net.a(image()), torch.zeros(8), torch.ones(8), training=True))
    )


def test_statistics_that_are_only_read_are_not_written():
    net = Net(lambda net, x: net.b(F.batch_norm(net.a(x), net.mean, net.var)), a=linear(), b=linear(8, 2), mean=nn.Parameter(torch.zeros(8), False), var=nn.Parameter(torch.ones(8), False))  # fmt: skip  # noqa: E501
    assert UniversalLayerPruner(net.eval(), example_inputs=rows()).graph.written_params == frozenset()


def test_statistics_that_only_train_mode_writes_stay_as_they_were_where_the_model_runs_on_real_values():
    """The forward asks for a value, so that the proof runs on tensors that share the user's parameters."""

    def forward(net, x):
        x = net.a(x)
        x = F.batch_norm(x, net.mean, net.var, training=net.training)
        return net.c(x + torch.relu(net.b(x))) if float(x.sum()) < 1e9 else x[:, :2]

    held = {"mean": nn.Parameter(torch.zeros(8), False), "var": nn.Parameter(torch.ones(8), False)}
    net = Net(forward, a=linear(), b=linear(), c=linear(8, 2), **held).eval()
    before = Photograph(net)
    pruner = UniversalLayerPruner(net, example_inputs=rows())
    assert not any("train" in note for note in pruner.notes)  # the run in train mode is proven, too, and taken back
    pruner.prune(groups=["b"])
    assert before == Photograph(net)
