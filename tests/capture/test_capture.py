"""Capture: the layer graph has the dependencies that the forward has, and the model is as it was."""

import copy
import dataclasses
import warnings
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.capture import capture
from layerprune.capture.capture import record
from layerprune.errors import CaptureError, InputsError, UnsupportedModelError
from layerprune.graph import form_groups
from layerprune.inputs import as_inputs
from models.capture_cases import BLIND, CASES
from models.nets import Net, Photograph, conv, copy_of, image, linear, parameter, randomised, rows, run, tokens


def graph_of(model, *args):
    return capture(model, as_inputs(args if args else rows()))


def anchor_of(layer):
    """The name by which a case knows a layer that holds parameters; None for other layers."""
    if not layer.params or layer.param_only:
        return None
    return "" if layer.function is not None and layer.fqn == "" else layer.name


def producers(graph, index):
    """The layers with parameters whose values reach a layer with no other such layer in between."""
    found, seen = set(), set()
    stack = list(graph.sources(index))
    while stack:
        source = stack.pop()
        if source < 0 or source in seen:
            continue
        seen.add(source)
        anchor = anchor_of(graph.layers[source])
        if anchor is None:
            stack += graph.sources(source)
        else:
            found.add(anchor)
    return found


def dependencies(graph, consumers):
    return {anchor_of(x): producers(graph, x.index) for x in graph.layers if anchor_of(x) in consumers}


def layer(graph, name):
    return next(found for found in graph.layers if found.name == name)


# ---- the forty-one cases ---------------------------------------------------------------------------------------------


def captured(case):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about the deprecated ways that some cases go
        return capture(case.build(), as_inputs(case.inputs()))


@pytest.mark.parametrize("name", [name for name in CASES if name not in BLIND])
def test_every_dependency_of_a_hard_case_is_found_and_none_invented(name):
    case = CASES[name]
    assert dependencies(captured(case), case.expected) == case.expected


def test_what_goes_through_numpy_is_noted():
    graph = captured(CASES["numpy_roundtrip"])
    assert any("unknown origin" in note for note in graph.notes), BLIND["numpy_roundtrip"]
    assert producers(graph, layer(graph, "c").index) == set()


LITERALS = {
    "a list": lambda net, y: y * torch.tensor([1.0] * 8),
    "a list as a tensor": lambda net, y: y * torch.as_tensor([1.0] * 8),
    "the old constructor": lambda net, y: y * torch.Tensor([1.0] * 8),
    "a new one like it": lambda net, y: y * y.new_tensor([1.0] * 8),
    "a list of places": lambda net, y: y[:, [3, 2, 1, 0, 4, 5, 6, 7]],
    "an array": lambda net, y: y * torch.from_numpy(np.ones(8, np.float32)),
    "a shape": lambda net, y: y * torch.tensor([float(y.shape[1])] * 8),
    "a range": lambda net, y: y * torch.arange(8),
    "an attribute": lambda net, y: y * net.scale,
    "a list in an attribute": lambda net, y: y * net.scales[0],
}
READ_OUT = {
    "tolist": lambda net, y: torch.tensor(y.tolist()),
    "item": lambda net, y: y * torch.tensor([y[0, 0].item()] * 8),
    "float": lambda net, y: y * torch.tensor([float(y[0, 0])] * 8),
    "int": lambda net, y: y * torch.tensor([int(y.argmax())] * 8),
    "array": lambda net, y: torch.as_tensor(np.asarray(y)),
}


def with_a_constant(forward):
    net = Net(lambda net, x: net.c(forward(net, net.b(torch.relu(net.a(x))))), a=linear(), b=linear(), c=linear())
    net.scale, net.scales = torch.ones(8), [torch.ones(8)]
    return capture(net, as_inputs(rows()))


@pytest.mark.parametrize("name", LITERALS)
def test_a_constant_that_knows_no_tensor_is_a_literal(name):
    graph = with_a_constant(LITERALS[name])
    assert graph.notes == ()
    assert producers(graph, layer(graph, "c").index) == {"b"}


@pytest.mark.parametrize("name", READ_OUT)
def test_a_constant_made_after_values_were_read_out_is_noted(name):
    assert any("unknown origin" in note for note in with_a_constant(READ_OUT[name]).notes)


def test_where_nothing_else_leads_to_the_output_the_lost_dependency_is_named():
    net = Net(lambda net, x: torch.tensor(net.a(x).tolist()) * 2, a=linear())
    with pytest.raises(UnsupportedModelError, match=r"nothing to remove \(a tensor of unknown"):
        UniversalLayerPruner(net, example_inputs=rows())


def test_memory_that_was_freed_lends_its_past_to_no_constant():
    """On real tensors what Python makes gets the address of what was freed: of the relu's result, or of ``a``'s."""
    for _ in range(10):
        graph = with_a_constant(READ_OUT["tolist"])
        assert producers(graph, layer(graph, "c").index) == set()


def test_torch_cond_is_one_layer_and_what_its_branches_use_is_noted():
    graph = captured(CASES["cond"])
    assert producers(graph, layer(graph, "cond").index) == {"a"}
    assert producers(graph, layer(graph, "c").index) == {"a"}, BLIND["cond"]
    assert not any(found.fqn == "b" for found in graph.layers)
    assert any("unknown origin" in note for note in graph.notes)


# ---- the model is as it was ------------------------------------------------------------------------------------------


def norm_net():
    return Net(
        lambda net, x: net.fc(net.drop(net.bn(net.conv(x))).mean((2, 3))),
        conv=conv(3, 4),
        bn=nn.BatchNorm2d(4),
        drop=nn.Dropout(0.5),
        fc=linear(4, 2),
    )


@pytest.mark.parametrize("training", [True, False])
def test_mode_hooks_buffers_and_rng_are_untouched(training):
    model = norm_net().train(training)
    model.bn.eval()  # a mixed mode is kept too
    seen = []
    model.conv.register_forward_hook(lambda *args: seen.append("forward"))
    model.register_forward_pre_hook(lambda *args: seen.append("before"))
    before = Photograph(model)
    graph_of(model, image())
    assert Photograph(model).difference(before) == ""
    assert model.bn.num_batches_tracked == 0
    assert model.training is training
    assert not model.bn.training
    assert run(model, image()).shape == (2, 2)


def test_a_model_that_runs_on_real_tensors_is_untouched_too():
    model = Net(
        lambda net, x: net.b(net.bn(net.a(x)) if x.sum() > -1e9 else x), a=linear(), bn=nn.BatchNorm1d(8), b=linear()
    ).train()
    before = Photograph(model)
    graph = graph_of(model)
    assert any("real tensors" in note for note in graph.notes)
    assert Photograph(model).difference(before) == ""


def test_what_a_forward_stores_in_its_module_stays_out_of_the_users_model():
    def forward(net, x):
        net.cache["last"] = net.a(x)
        net.calls.append(1)
        return net.b(net.cache["last"])

    model = Net(forward, a=linear(), b=linear())
    model.cache, model.calls = {}, []
    graph_of(model)
    assert model.cache == {}
    assert model.calls == []


def test_inputs_that_the_forward_writes_into_keep_their_values():
    for forward in (lambda net, x: net.a(x.mul_(0)), lambda net, x: net.a(x.mul_(0 if x.sum() != 1e9 else 1))):
        x = rows()
        graph_of(Net(forward, a=linear()), x)
        assert torch.equal(x, rows())


def test_the_shadow_holds_fakes_and_no_copies():
    model = norm_net()
    _, shade = record(model, as_inputs(image()))
    tensors = [*shade.model.parameters(), *shade.model.buffers()]
    assert len(tensors) == len([*model.parameters(), *model.buffers()])
    assert all(isinstance(t, FakeTensor) for t in tensors)
    assert not any(isinstance(t, FakeTensor) for t in [*model.parameters(), *model.buffers()])


def test_the_shadow_of_a_real_run_shares_the_parameters_and_copies_the_buffers():
    model = Net(lambda net, x: net.a(x) * (x.sum() > 0).item() + net.b, a=linear(), b=torch.zeros(8))
    _, shade = record(model, as_inputs(rows()))
    assert shade.mode is None
    assert shade.model.a.weight.data_ptr() == model.a.weight.data_ptr()
    assert shade.model.b.data_ptr() != model.b.data_ptr()


def test_a_model_on_the_meta_device_is_captured():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 100_000), nn.ReLU(), nn.Linear(100_000, 100_000))
    graph = graph_of(model, torch.empty(1, 100_000, device="meta"))
    assert [found.name for found in graph.layers] == ["0", "1", "2"]
    assert graph.num_params == 2 * (100_000**2 + 100_000)
    assert all(p.is_meta for p in model.parameters())


# ---- what a graph holds ----------------------------------------------------------------------------------------------


def test_layers_are_leaf_calls_and_functions_in_order_of_execution():
    graph = graph_of(norm_net(), image())
    assert [(found.name, found.kind) for found in graph.layers] == [
        ("conv", "transform"),
        ("bn", "normalization"),
        ("drop", "dropout"),
        ("mean", "pooling"),
        ("fc", "transform"),
    ]


def test_a_leaf_with_several_functions_inside_is_one_layer():
    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    graph = graph_of(nn.Sequential(linear(), Swish(), linear()))
    assert [found.name for found in graph.layers] == ["0", "1", "2"]


def test_functions_called_in_a_containers_forward_are_layers_of_their_own():
    graph = graph_of(Net(lambda net, x: F.relu(net.a(x)) + torch.tanh(x), a=linear()))
    assert [found.name for found in graph.layers] == ["a", "relu", "tanh", "add"]
    assert all(found.fqn == "" for found in graph.layers if found.name != "a")


def test_a_module_called_twice_is_two_layers_and_leads_one_group():
    graph = graph_of(Net(lambda net, x: net.b(torch.relu(net.a(torch.relu(net.a(x))))), a=linear(), b=linear()))
    calls = [found for found in graph.layers if found.fqn == "a"]
    assert [found.name for found in calls] == ["a", "a#1"]
    groups = form_groups(graph)
    assert [group.name for group in groups] == ["a", "b"]
    assert groups[0].calls == tuple(found.index for found in calls)
    assert groups[0].num_params == 72  # counted once


def test_one_module_under_two_names_is_one_layer_a_call():
    shared = linear()
    graph = graph_of(nn.Sequential(shared, nn.ReLU(), shared))
    assert len(form_groups(graph)) == 1
    assert graph.num_params == 72
    assert graph.aliases["0"] == ("0", "2")


def test_a_write_in_place_is_a_layer_and_its_result_replaces_what_it_wrote_into():
    graph = graph_of(Net(lambda net, x: net.b(F.relu(net.a(x), inplace=True)), a=linear(), b=linear()))
    assert [found.name for found in graph.layers] == ["a", "relu", "b"]
    assert graph.sources(2) == {1}
    assert graph.sources(1) == {0}
    assert graph.layers[1].writes == {graph.values[graph.layers[0].outputs[0]].storage}


def test_augmented_assignment_is_a_merge():
    def forward(net, x):
        y = net.a(x)
        y += net.b(x)
        return net.c(y)

    graph = graph_of(Net(forward, a=linear(), b=linear(), c=linear()))
    merge = graph.layers[2]
    assert merge.kind == "merge"
    assert graph.sources(2) == {0, 1}
    assert graph.sources(3) == {2}


def test_a_layer_that_does_not_depend_on_the_input_is_marked():
    graph = graph_of(Net(lambda net, x: net.a(x) + net.b(net.table), a=linear(), b=linear(), table=parameter(8)))
    assert layer(graph, "b").param_only
    assert not layer(graph, "a").param_only
    assert [group.name for group in form_groups(graph)] == ["a"]


def test_a_layer_whose_result_is_thrown_away_is_in_the_graph_and_not_live():
    def forward(net, x):
        net.b(x)
        return net.a(x)

    graph = graph_of(Net(forward, a=linear(), b=linear()))
    assert layer(graph, "b").index not in graph.live
    assert graph.live == {layer(graph, "a").index}
    assert [group.name for group in form_groups(graph)] == ["a"]


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: list


Pair = namedtuple("Pair", "logits hidden")


@pytest.mark.parametrize(
    "pack",
    [
        lambda y, h: (y, h),
        lambda y, h: [y, [h]],
        lambda y, h: {"logits": y, "hidden": (h,)},
        lambda y, h: OrderedDict(logits=y, hidden=h),
        lambda y, h: Pair(y, h),
        lambda y, h: Output(y, [h, None]),
    ],
    ids=["tuple", "list", "dict", "OrderedDict", "namedtuple", "dataclass"],
)
def test_outputs_are_found_in_any_structure(pack):
    def forward(net, x):
        hidden = net.a(x)
        return pack(net.b(hidden), hidden)

    graph = graph_of(Net(forward, a=linear(), b=linear(8, 3)))
    assert [graph.values[v].layer for v in graph.outputs] == [1, 0]
    assert [graph.values[v].shape for v in graph.outputs] == [(4, 3), (4, 8)]


def test_inputs_are_found_in_any_structure():
    batch = Output(rows(), [rows(seed=2), {"x": rows(seed=3)}])
    model = Net(
        lambda net, b: net.a(b.logits) + net.b(b.hidden[0]) + net.c(b.hidden[1]["x"]),
        a=linear(),
        b=linear(),
        c=linear(),
    )
    graph = capture(model, as_inputs((batch,)))
    assert len(graph.inputs) == 3
    readers = [layer(graph, name).index for name in ("a", "b", "c")]
    assert [graph.sources(i) for i in readers] == [{-1}, {-1}, {-1}]
    assert len({v for i in readers for v in graph.read_by(i)}) == 3


def test_a_shape_that_a_forward_reads_is_written_down():
    def forward(net, x):
        y = net.a(x)
        return net.b(y.reshape(y.shape[0], -1))

    graph = graph_of(Net(forward, a=linear(), b=linear()))
    assert graph.shape_reads == {(layer(graph, "a").outputs[0], 0)}


def test_a_tied_parameter_counts_once_and_has_both_names():
    model = Net(lambda net, x: net.b(net.a(x)), a=linear(), b=linear())
    model.b.weight = model.a.weight
    graph = graph_of(model)
    assert graph.num_params == 64 + 8 + 8
    assert graph.param_ids["a.weight"] == graph.param_ids["b.weight"]


# ---- control flow, wrappers, failures --------------------------------------------------------------------------------


def test_control_flow_that_depends_on_data_is_run_for_real_with_a_note():
    def forward(net, x):
        y = net.a(x)
        return net.b(y) if y.sum() > -1e9 else net.c(y)

    graph = graph_of(Net(forward, a=linear(), b=linear(), c=linear()))
    assert dependencies(graph, {"a", "b", "c"}) == {"a": set(), "b": {"a"}}
    assert any("recorded on real tensors" in note for note in graph.notes)
    assert any("reads values of tensors" in note for note in graph.notes)


def test_a_plain_forward_leaves_no_note():
    assert graph_of(norm_net(), image()).notes == ()


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["DataParallel", "compile"]
)
def test_a_wrapped_model_is_unwrapped(wrap):
    model = randomised(nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear()))
    pruner = UniversalLayerPruner(wrap(model), example_inputs=rows())
    assert pruner.model is model
    assert list(pruner.transform_layers) == ["0", "2", "4"]
    assert type(pruner.prune(groups=["2"])) is nn.Sequential


def test_capture_takes_a_wrapped_model_itself():
    model = nn.Sequential(linear(), nn.ReLU())
    graph = graph_of(nn.DataParallel(model))
    assert [found.kind for found in graph.layers] == ["transform", "activation"]


def test_a_forward_that_raises_says_where_and_what_to_pass():
    with pytest.raises(InputsError, match=r"Net\.forward raised on the example inputs.*4×3.*example_inputs="):
        graph_of(Net(lambda net, x: net.a(x), a=linear()), rows(width=3))


def test_a_forward_that_returns_no_tensor_says_so():
    with pytest.raises(CaptureError, match="returns no tensor"):
        graph_of(Net(lambda net, x: (net.a(x) * 0, None)[1], a=linear()))


def test_two_captures_of_one_model_are_equal():
    model = norm_net()
    inputs = as_inputs(image())
    assert capture(model, inputs) == capture(copy_of(model), inputs)
    assert capture(copy.copy(model), inputs) == capture(model, inputs)


def test_token_models_are_captured_at_any_length():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    names = [[found.name for found in graph_of(model, tokens(1, n)).layers] for n in (1, 7)]
    assert names[0] == names[1]
    assert {"self_attn", "linear1", "linear2", "norm1", "norm2"} <= set(names[0])


class Rescales(nn.Module):
    """Halves a part's weight in its first eval forward, and gives it back in train mode, as RWKV does."""

    def __init__(self, *, looks):
        super().__init__()
        self.stem, self.a, self.b, self.head = linear(), linear(), linear(), linear()
        self.rescaled = False
        self.looks = looks

    def forward(self, x):
        if self.rescaled == self.training:
            with torch.no_grad():
                self.a.weight.mul_(2.0 if self.training else 0.5)
            self.rescaled = not self.training
        x = self.stem(x)
        if self.looks and float(x.abs().sum()) < 0:  # never; but fake tensors cannot tell
            return x
        return self.head(x + self.a(x) + self.b(x))


@pytest.mark.parametrize("looks", [False, True])
def test_a_forward_that_writes_into_a_parameter_writes_into_a_copy(looks):
    model = randomised(Rescales(looks=looks)).eval()
    before = copy_of(model)
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    assert pruner.graph.written_params == {"a.weight"}
    assert all(group.impact >= 0 for group in pruner.groups)
    assert not model.rescaled
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_proofs_start_from_the_flags_of_the_users_model():
    pruner = UniversalLayerPruner(randomised(Rescales(looks=False)).eval(), example_inputs=rows())
    verdicts = {group.name: group for group in pruner.groups}
    assert verdicts["b"].can_remove
    assert not verdicts["a"].can_remove, "its weight is read in the first forward"
    assert "weight" in verdicts["a"].reason


class Tries(nn.Module):
    """Calls its branch in a way that may fail, and then in another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = linear(), Fails(), linear()

    def forward(self, x):
        x = self.stem(x)
        try:
            y = self.branch(x, fast=True)
        except NotImplementedError:
            y = self.branch(x, fast=False)
        return self.head(x + y)


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(), linear()

    def forward(self, x, fast):
        h = self.a(x).relu()
        if fast:
            raise NotImplementedError
        return self.b(h)


def test_a_call_that_raised_and_was_caught_is_no_call():
    model = randomised(Tries())
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    assert [pruner.graph.frames[f].raised for f in pruner.graph.calls["branch"]] == [False]
    small = pruner.prune(groups=["branch.a", "branch.b"])
    with torch.no_grad():
        assert torch.allclose(run(small, rows(7)), model.head(model.stem(rows(7))), atol=1e-6)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.mul(x, x)

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


def test_what_an_autograd_function_calls_bears_its_name():
    model = Net(lambda net, x: net.b(Squared.apply(net.a(x)) * 2), a=linear(), b=linear())
    types = [layer.type_name for layer in record(model, as_inputs(rows()))[0].layers]
    assert types == ["Linear", "Squared.mul", "mul", "Linear"]
