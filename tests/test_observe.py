"""Observation: chosen values of the layer graph, as a real forward comes to them; and gradients at them."""

import math

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.calibration import read_calibration
from layerprune.capture import record
from layerprune.impact.evidence import Scene
from layerprune.impact.harm import norm
from layerprune.impact.output_change import score_output_change
from layerprune.impact.shifts import Shift, Tensors
from layerprune.impact.taps import Taps
from layerprune.inputs import as_inputs
from layerprune.observe import Observer
from layerprune.shadow import real_shadow
from nets import Net, Photograph, linear, randomised, rows, tokens


def observed(model, x, names, **options):
    """The first output of each layer named, as it was seen."""
    inputs = as_inputs(x)
    graph, _ = record(model, inputs)
    values = {layer.name: layer.outputs[0] for layer in graph.layers if layer.name in names}
    assert set(values) == set(names)
    seen = {}
    observer = Observer(real_shadow(model), graph, values.values())
    found = observer.run(inputs, lambda value, tensor: seen.setdefault(value, tensor.detach().clone()), **options)
    assert found == set(seen)
    return {name: seen.get(value) for name, value in values.items()}, observer


def test_a_sum_that_a_module_reads_is_seen_there_and_no_function_is_watched():
    model = randomised(Net(lambda net, x: net.b(x + net.a(x)), a=linear(), b=linear()))
    x = rows()
    seen, observer = observed(model, x, ["add", "a"])
    with torch.no_grad():
        assert torch.equal(seen["add"], x + model.a(x))
        assert torch.equal(seen["a"], model.a(x))
    assert not observer.watcher.places.functions


def test_what_passes_between_functions_only_is_seen_as_it_is_made():
    def forward(net, x):
        return net.b(torch.relu(x + net.a(x)) * 2.0)

    model = randomised(Net(forward, a=linear(), b=linear()))
    x = rows()
    seen, _ = observed(model, x, ["add", "relu", "mul"])
    with torch.no_grad():
        assert torch.equal(seen["relu"], torch.relu(x + model.a(x)))
        assert torch.equal(seen["add"], x + model.a(x))
        assert torch.equal(seen["mul"], 2 * seen["relu"])


class Inner(nn.Module):
    """Adds, as its caller does."""

    def __init__(self):
        super().__init__()
        self.a = linear()

    def forward(self, x):
        return torch.relu(x + self.a(x))


def test_functions_of_a_module_are_not_taken_for_its_caller_s():
    def forward(net, x):
        with torch.device("cpu"):  # a mode of the user's own, around a call
            x = net.inner(x)
        return net.b(torch.relu(x + net.c(x)))

    model = randomised(Net(forward, inner=Inner(), b=linear(), c=linear()))
    x = rows()
    for names in (["add"], ["inner.add"], ["add", "inner.add"]):
        seen, _ = observed(model, x, names)
        with torch.no_grad():
            inner = x + model.inner.a(x)
            outer = torch.relu(inner) + model.c(torch.relu(inner))
        for name in names:
            assert torch.equal(seen[name], outer if name == "add" else inner)


def test_a_fused_fast_path_is_off_for_the_run_and_on_again_after_it():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = randomised(Net(lambda net, x: net.head(net.layer(net.stem(x))), stem=linear(), layer=layer, head=linear()))
    x = tokens()
    before = Photograph(model)
    seen, _ = observed(model, x, ["layer.linear1", "layer.norm1"])
    with torch.no_grad():
        assert seen["layer.linear1"].allclose(model.layer.linear1(seen["layer.norm1"]), atol=1e-6)
    assert torch.backends.mha.get_fastpath_enabled()
    assert Photograph(model) == before


def test_the_model_may_be_called_by_someone_else():
    model = randomised(Net(lambda net, x: net.b(torch.tanh(net.a(x))), a=linear(), b=linear()))
    outputs = []
    seen, _ = observed(model, rows(), ["a"], forward=lambda net: 2 * net(3 * rows()), use=outputs.append)
    with torch.no_grad():
        assert torch.equal(seen["a"], model.a(3 * rows()))
        assert torch.allclose(outputs[0], 2 * model(3 * rows()))
    assert outputs[0].requires_grad


# ---- comparing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_tensors_are_compared_whichever_comes_first(order):
    model = randomised(Net(lambda net, x: net.b(net.a(x)), a=linear(), b=linear()))
    graph, _ = record(model, as_inputs(rows()))
    numbers = [graph.inputs[0], graph.layers[0].outputs[0]]
    shift = Shift(moved=numbers[1], other=numbers[0])
    found = []
    see = Tensors(graph, [shift]).seeing(lambda *compared: found.append(compared))
    for place in order:
        see(numbers[place], rows(seed=place))
    assert len(found) == 1
    assert found[0][0] is shift
    assert torch.equal(found[0][1], rows(seed=1))
    assert torch.equal(found[0][2], rows(seed=0))


def test_a_tensor_that_is_written_into_later_is_compared_as_it_was():
    def forward(net, x):
        y = net.a(net.stem(x))
        z = net.b(y)
        y.mul_(0.0)
        return net.head(z + y)

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "head")}))
    graph, _ = record(model, as_inputs(rows()))
    by_name = {layer.name: layer.outputs[0] for layer in graph.layers}
    tensors = Tensors(graph, [Shift(by_name["b"], by_name["a"])])
    found = []
    observer = Observer(real_shadow(model), graph, tensors.wanted)
    observer.run(as_inputs(rows()), tensors.seeing(lambda _shift, moved, other: found.append((moved, other))))
    with torch.no_grad():
        y = model.a(model.stem(rows()))
        assert torch.equal(found[0][1], y)
        assert torch.equal(found[0][0], model.b(y))


@pytest.mark.parametrize("shape", [(7,), (3, 5), (3, 5, 4), (2, 3, 600, 500)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_norm_is_that_of_all_elements(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert float(norm(tensor)) == pytest.approx(math.sqrt(float(tensor.double().square().sum())), rel=5e-4)
    if len(shape) == 3:
        mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
        counted = (tensor.double() * mask.unsqueeze(-1)).square().sum()
        assert float(norm(tensor, mask)) == pytest.approx(math.sqrt(float(counted)), rel=5e-4)


# ---- gradients --------------------------------------------------------------------------------------------------


def scene_of(model, batches):
    pruner = UniversalLayerPruner(model, example_inputs=batches[0])
    return Scene(model, pruner.graph, pruner.removals, read_calibration(batches, model))


def test_gradients_come_in_through_the_first_layer_alone():
    def forward(net, x):
        x = net.stem(x)
        return net.head(x + net.b(torch.relu(net.a(x))))

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "head")}))
    scene = scene_of(model, [rows()])
    taps = Taps(scene)
    asking = {name for name, p in taps.shade.model.named_parameters() if p.requires_grad}
    assert asking == {"stem.weight", "stem.bias"}
    assert not any(math.isnan(impact) for impact in score_output_change(scene).impacts)


def test_behind_a_detached_value_gradients_start_anew():
    def forward(net, x):
        x = net.stem(x).detach()
        x = net.middle(x)
        return net.head(x + net.b(torch.relu(net.a(x))))

    names = ("stem", "middle", "a", "b", "head")
    model = randomised(Net(forward, **{name: linear() for name in names})).double()
    detached = scene_of(model, [rows().double()])
    drop = next(i for i, r in enumerate(detached.removals) if r.kind == "branch")
    found = score_output_change(detached, num_directions=300).impacts[drop]
    with torch.no_grad():
        x = model.middle(model.stem(rows().double()))
        step = model.b(torch.relu(model.a(x)))
        size = model.head(x + step).square().sum()
        truth = float((model.head.weight.square().sum(0) * step.square()).sum() / size)
    assert found == pytest.approx(truth, rel=0.1)
