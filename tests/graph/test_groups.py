"""Groups: each starts with a transform, takes in what depends on it alone, and spans no second transform."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune.capture import capture
from layerprune.errors import UnsupportedModelError
from layerprune.graph import form_groups
from layerprune.graph.groups import GROUP_TYPES
from layerprune.inputs import as_inputs
from models.nets import ExampleModel, Net, conv, image, linear, parameter, rows, tokens


def groups_of(model, *args):
    """Lead → members after the lead."""
    return {g.name: [x.name for x in g.layers[1:]] for g in found(model, *args)}


def types_of(model, *args):
    return {g.name: g.type for g in found(model, *args)}


def found(model, *args):
    return form_groups(capture(model, as_inputs(args if args else rows())))


# ---- the three principles --------------------------------------------------------------------------------------------


def test_every_group_starts_with_a_transform_and_spans_no_second_one():
    for model, inputs in (
        (ExampleModel(), image()),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), tokens()),
    ):
        graph = capture(model, as_inputs(inputs))
        groups = form_groups(graph)
        leads = [layer.name for layer in graph.layers if layer.kind == "transform"]
        assert [group.name for group in groups] == leads
        for group in groups:
            assert [layer.kind for layer in group.layers].count("transform") == 1
            assert group.layers[0] is group.lead_transform
            assert group.lead_transform.kind == "transform"


def test_a_chain_is_cut_at_each_transform():
    model = nn.Sequential(linear(), nn.ReLU(), nn.Dropout(), linear(), nn.LayerNorm(8), linear())
    assert groups_of(model) == {"0": ["1", "2"], "3": ["4"], "5": []}


def test_a_layer_that_depends_on_two_groups_is_in_neither():
    model = Net(lambda net, x: net.c(torch.relu(net.a(x) + net.b(x))), a=linear(), b=linear(), c=linear())
    assert groups_of(model) == {"a": [], "b": [], "c": []}


def test_a_layer_that_depends_on_a_group_and_on_the_models_input_is_in_neither():
    model = Net(lambda net, x: net.b(torch.relu(net.a(x) + x)), a=linear(), b=linear())
    assert groups_of(model) == {"a": [], "b": []}


def test_layers_before_the_first_transform_are_in_no_group():
    model = nn.Sequential(nn.LayerNorm(8), nn.ReLU(), linear())
    assert groups_of(model) == {"2": []}


def test_a_merge_of_one_groups_own_tensors_belongs_to_it():
    model = Net(lambda net, x: net.b(net.a(x) * torch.sigmoid(net.a.weight.sum() + 0) + 1), a=linear(), b=linear())
    assert groups_of(model)["b"] == []

    def gated(net, x):
        y = net.a(x)
        return net.b(y * torch.sigmoid(y))

    assert groups_of(Net(gated, a=linear(), b=linear())) == {"a": ["sigmoid", "mul"], "b": []}


def test_a_layer_that_also_reads_a_constant_of_the_network_stays_in_its_group():
    model = Net(lambda net, x: net.b(net.a(x) + net.table * 2), a=linear(), b=linear(), table=parameter(8))
    assert groups_of(model) == {"a": ["add"], "b": []}


def test_a_transform_that_reads_no_input_is_a_constant_and_leads_no_group():
    model = Net(lambda net, x: net.a(x) + net.b(net.table), a=linear(), b=linear(), table=parameter(8))
    assert groups_of(model) == {"a": ["add"]}


def test_a_transform_whose_result_reaches_no_output_leads_no_group():
    def forward(net, x):
        net.b(x)
        return net.a(x)

    assert groups_of(Net(forward, a=linear(), b=linear())) == {"a": []}


def test_a_module_called_twice_leads_one_group_with_the_members_of_both_calls():
    model = Net(lambda net, x: net.b(torch.relu(net.a(torch.tanh(net.a(x))))), a=linear(), b=linear())
    (shared, _) = found(model)
    assert [layer.name for layer in shared.layers] == ["a", "tanh", "a#1", "relu"]
    assert len(shared.calls) == 2
    assert shared.num_params == 72


def test_a_model_without_a_transform_is_refused():
    with pytest.raises(UnsupportedModelError, match="transform"):
        found(nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()))


# ---- what counts as a transform, and as a member ---------------------------------------------------------------------


def test_functional_activations_are_members():
    model = Net(lambda net, x: net.b(F.relu(F.layer_norm(net.a(x), (8,)))), a=linear(), b=linear())
    assert groups_of(model) == {"a": ["layer_norm", "relu"], "b": []}


def test_a_linear_function_with_a_parameter_leads_a_group():
    model = Net(lambda net, x: net.b(F.relu(F.linear(net.a(x), net.w))), a=linear(), b=linear(), w=parameter(8, 8))
    assert groups_of(model) == {"a": [], "linear": ["relu"], "b": []}
    group = found(model)[1]
    assert str(group.lead_transform) == "linear: linear (transform)"
    assert group.num_params == 64


def test_recurrent_and_attention_layers_lead_groups():
    model = Net(
        lambda net, x: net.b(torch.relu(net.m(net.r(net.a(x))[0], x, x)[0])),
        a=linear(),
        r=nn.LSTM(8, 8, batch_first=True),
        m=nn.MultiheadAttention(8, 2, batch_first=True),
        b=linear(),
    )
    groups = groups_of(model, tokens())
    assert list(groups) == ["a", "r", "m", "b"]
    assert groups["m"] == ["relu"]


def test_transformers_conv1d_leads_a_group():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv1d(8, 8), nn.GELU(), conv1d(8, 8))
    assert groups_of(model) == {"0": ["1"], "2": []}
    assert [g.num_params for g in found(model)] == [72, 72]


def test_custom_norms_and_activations_are_members():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * self.scale

    class Act(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    group = found(nn.Sequential(linear(), Norm(), Act(), linear()))[0]
    assert [str(layer) for layer in group.layers] == [
        "0: Linear (transform)",
        "1: Norm (normalization)",
        "2: Act (activation)",
    ]
    assert group.num_params == 72 + 8
    assert group.type == "transform_unit"


def test_a_tied_weight_counts_in_each_group_and_once_in_a_group():
    model = Net(lambda net, x: net.b(net.a(x)), a=linear(), b=linear())
    model.b.weight = model.a.weight
    assert [group.num_params for group in found(model)] == [72, 72]


# ---- types -----------------------------------------------------------------------------------------------------------


def test_a_transform_with_plain_members_on_the_trunk_is_a_unit():
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), conv(4, 4))
    assert types_of(model, image()) == {"0": "transform_unit", "5": "transform_unit"}


def test_a_reshape_among_the_members_makes_a_group_complex():
    model = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Flatten(), linear(4 * 64, 2))
    assert types_of(model, image()) == {"0": "complex", "3": "transform_unit"}


@pytest.mark.parametrize(
    "merge",
    [lambda a, b: torch.cat([a, b], 1), lambda a, b: a + b, lambda a, b: a * b],
    ids=["cat", "add", "mul"],
)
def test_each_of_two_branches_that_fork_and_meet_is_parallel(merge):
    def forward(net, x):
        x = net.stem(x)
        return merge(torch.relu(net.a(x)), net.b(x))

    assert types_of(Net(forward, stem=linear(), a=linear(), b=linear())) == {
        "stem": "transform_unit",
        "a": "parallel_branch",
        "b": "parallel_branch",
    }


def test_a_residual_branch_of_one_group_is_parallel():
    model = Net(lambda net, x: net.head((y := net.stem(x)) + net.a(y)), stem=linear(), a=linear(), head=linear())
    assert types_of(model)["a"] == "parallel_branch"


def test_both_groups_of_a_longer_branch_are_parallel():
    # "the group lies on one of several paths that fork from one tensor and meet again in a merge" (DESIGN.md)
    model = Net(
        lambda net, x: net.head((y := net.stem(x)) + net.b(torch.relu(net.a(y)))),
        stem=linear(),
        a=linear(),
        b=linear(),
        head=linear(),
    )
    assert types_of(model) == {
        "stem": "transform_unit",
        "a": "parallel_branch",
        "b": "parallel_branch",
        "head": "transform_unit",
    }


def test_a_module_called_twice_is_complex():
    model = Net(lambda net, x: net.b(torch.relu(net.a(torch.relu(net.a(x))))), a=linear(), b=linear())
    assert types_of(model)["a"] == "complex"


def test_types_are_those_that_the_documents_name():
    assert GROUP_TYPES == ("transform_unit", "parallel_branch", "complex")
    assert {group.type for group in found(ExampleModel(), image())} <= set(GROUP_TYPES)


# ---- what a group says of its layers ---------------------------------------------------------------------------------


def test_layer_infos_hold_name_class_kind_size_and_shape():
    lead = found(ExampleModel(), image())[0].lead_transform
    assert (lead.name, lead.type_name, lead.kind) == ("conv1", "Conv2d", "transform")
    assert (lead.num_params, lead.output_shape) == (896, (2, 32, 8, 8))
    assert str(lead) == "conv1: Conv2d (transform)"


def test_groups_stay_in_order_of_execution_not_of_registration():
    model = Net(lambda net, x: net.a(torch.relu(net.b(x))), a=linear(), b=linear())
    assert list(groups_of(model)) == ["b", "a"]
