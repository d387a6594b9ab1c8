"""Observation: chosen values of the layer graph, as a real forward comes to them; and gradients at them."""

import functools
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from layerprune import UniversalLayerPruner
from layerprune.capture import Probe, read_calibration, real_sandbox
from layerprune.capture.capture import record
from layerprune.fidelity import norm
from layerprune.impact import ScoringContext, score_output_change
from layerprune.impact.estimators.gradient_taps import GradientTaps
from layerprune.impact.estimators.influence import score_influence
from layerprune.impact.estimators.perturbations import Perturbation, Tensors, perturbations_of
from layerprune.inputs import as_inputs
from layerprune.modules import CallKey
from models.nets import Net, Photograph, linear, randomised, repeats, rows, tokens
from oracle.simulation import located


def observed(model, x, names, **options):
    """The first output of each layer named, as it was seen."""
    inputs = as_inputs(x)
    graph, _ = record(model, inputs)
    values = {layer.name: layer.outputs[0] for layer in graph.layers if layer.name in names}
    assert set(values) == set(names)
    seen = {}

    def begin():
        seen.clear()
        return lambda value, tensor: seen.setdefault(value, tensor.detach().clone())

    observer = Probe(real_sandbox(model), graph, values.values())
    found = observer.run(inputs, begin, **options)
    assert found == set(seen)
    return {name: seen.get(value) for name, value in values.items()}, observer


def test_functions_are_watched_only_where_a_value_is_made_by_one():
    model = randomised(Net(lambda net, x: net.b(x + net.a(x)), a=nn.Sequential(linear(), nn.ReLU()), b=linear()))
    x = rows()
    seen, observer = observed(model, x, ["a.0", "a.1"])
    with torch.no_grad():
        assert torch.equal(seen["a.0"], model.a[0](x))
        assert torch.equal(seen["a.1"], model.a(x))
    assert not observer.watchers[0].places.steps
    seen, observer = observed(model, x, ["add", "a.0"])
    with torch.no_grad():
        assert torch.equal(seen["add"], x + model.a(x))
    assert set(observer.watchers[0].places.steps) == {CallKey("")}


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
    shift = Perturbation(moved=numbers[1], other=numbers[0])
    found = []
    see = Tensors(graph, [shift]).seeing(lambda *compared: found.append(compared))
    for place in order:
        see(numbers[place], rows(seed=place))
    assert len(found) == 1
    assert found[0][0] is shift
    assert torch.equal(found[0][1], rows(seed=1))
    assert torch.equal(found[0][2], rows(seed=0))


@pytest.mark.parametrize("keeps", [False, True])
def test_a_tensor_that_is_written_into_later_is_compared_as_it_was(keeps):
    def forward(net, x):
        y = net.a(net.stem(x))
        z = net.b(y)
        y.mul_(0.0)
        return net.head(z + y)

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "head")}))
    graph, _ = record(model, as_inputs(rows()))
    by_name = {layer.name: layer.outputs[0] for layer in graph.layers}
    tensors = Tensors(graph, [Perturbation(by_name["a"], by_name["stem"]), Perturbation(by_name["b"], by_name["a"])])
    found = []

    def compare(_shift, moved, other):
        found.append((moved, other) if keeps else (moved.clone(), other.clone()))

    observer = Probe(real_sandbox(model), graph, tensors.wanted)
    observer.run(as_inputs(rows()), lambda: tensors.seeing(compare, keeps=keeps))
    with torch.no_grad():
        x = model.stem(rows())
        y = model.a(x)
        truth = [(y, x), (model.b(y), y)]
    assert all(
        torch.equal(a, b) for pair, true in zip(found, truth, strict=True) for a, b in zip(pair, true, strict=True)
    )


def test_a_tensor_is_copied_only_for_who_keeps_it_or_for_what_is_still_to_come():
    model = randomised(Net(lambda net, x: net.b(torch.relu_(net.a(x))), a=linear(), b=linear()))
    graph, _ = record(model, as_inputs(rows()))
    by_name = {layer.name: layer.outputs[0] for layer in graph.layers}
    once, later = Perturbation(by_name["a"], graph.inputs[0]), Perturbation(by_name["b"], by_name["a"])
    x, y, z = rows(seed=0), rows(seed=1), rows(seed=2)

    def compared(shifts, **options):
        found = {}
        see = Tensors(graph, shifts).seeing(lambda shift, *pair: found.__setitem__(shift, pair), **options)
        for value, tensor in ((graph.inputs[0], x), (by_name["a"], y), (by_name["b"], z)):
            if any(value in (shift.moved, shift.other) for shift in shifts):
                see(value, tensor)
        return found

    assert by_name["a"] in Tensors(graph, [once]).written
    assert compared([once], keeps=False)[once][0].data_ptr() == y.data_ptr()
    assert compared([once])[once][0].data_ptr() != y.data_ptr()
    assert compared([once, later], keeps=False)[later][1].data_ptr() != y.data_ptr()


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
    return ScoringContext(
        model=model, graph=pruner.graph, removals=pruner.removals, batches=read_calibration(batches, model)
    )


def test_gradients_come_in_through_the_first_layer_alone():
    def forward(net, x):
        x = net.stem(x)
        return net.head(x + net.b(torch.relu(net.a(x))))

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "head")}))
    scene = scene_of(model, [rows()])
    taps = GradientTaps(scene)
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


# ---- runs that are not what was recorded ------------------------------------------------------------------------


def doubled_then_summed(net, x, *, extra=False):
    """On real tensors one ``mul`` and one ``add`` more than on fake ones, before those that count."""
    x = net.stem(x)
    if extra and not isinstance(x, FakeTensor):
        net.level = (x.detach() * 0.5 + 1.0).mean()
    y = x * 2.0
    z = y + torch.relu(net.a(torch.relu(y)))
    return net.head(z * 1.0)


def tripling(extra):
    """``a`` makes three of what it gets, so on inputs above 0 the sum is four times what it was without it."""
    parts = {name: nn.Linear(8, 8, bias=False) for name in ("stem", "a", "head")}
    with torch.no_grad():
        for name, part in parts.items():
            part.weight.copy_((3 if name == "a" else 1) * torch.eye(8))
    return Net(functools.partial(doubled_then_summed, extra=extra), **parts)


def branch_evidence(score, model, x):
    """What a criterion finds of the removal that takes the whole branch out, and its notes."""
    scene = scene_of(model, [x])
    drop = next(i for i, r in enumerate(scene.removals) if r.kind == "branch")
    evidence = score(scene)
    return float(evidence.impacts[drop]), evidence.notes


def test_functions_that_run_on_real_tensors_only_are_told_from_those_that_were_recorded():
    x = rows().abs()
    found, notes = branch_evidence(score_influence, tripling(extra=True), x)
    assert found == pytest.approx(3 / 4)
    assert not any("not known" in note for note in notes)
    plain, _ = branch_evidence(score_output_change, tripling(extra=False), x)
    found, _ = branch_evidence(score_output_change, tripling(extra=True), x)
    assert found == pytest.approx(plain, rel=1e-5)


def test_of_two_equal_products_the_one_is_seen_that_is_read():
    def forward(net, x, extra):
        x = net.stem(x)
        if extra and not isinstance(x, FakeTensor):
            net.other = torch.relu(x * 2.0)
        y = x * 2.0
        return net.head((y + torch.relu(net.a(torch.relu(y)))) * 1.0)

    parts = {name: linear() for name in ("stem", "a", "head")}
    plain, extra = (randomised(Net(functools.partial(forward, extra=some), **parts)) for some in (False, True))
    found, notes = branch_evidence(score_output_change, extra, rows())
    assert found == pytest.approx(branch_evidence(score_output_change, plain, rows())[0], rel=1e-5)
    assert not any("not known" in note for note in notes)


def repeated(net, x):
    """A loop that ends by the data."""
    while float(x.detach().abs().max()) < 8.0:
        x = x + net.block(x)
    return net.head(x)


def test_a_loop_that_runs_longer_than_it_was_recorded_is_seen_where_that_is_certain_and_else_not():
    block = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        block.weight.copy_(torch.eye(8))  # each round doubles
    model = Net(repeated, block=block, head=linear())
    ones = torch.ones(4, 8)
    graph, _ = record(model, as_inputs(4 * ones))  # one round
    value = {layer.name: layer.outputs[0] for layer in graph.layers if layer.outputs}
    observer = Probe(real_sandbox(model), graph, [value["block"], value["add"], value["head"]])
    seen = {}

    def begin():
        seen.clear()
        return seen.__setitem__

    assert observer.run(as_inputs(4 * ones), begin) == {value["block"], value["add"], value["head"]}
    assert torch.equal(seen[value["add"]], 8 * ones)
    # Of two rounds the sum that the head reads is certain; which call of the block is the one that was recorded is not.
    assert observer.run(as_inputs(2 * ones), begin) == {value["add"], value["head"]}
    assert torch.equal(seen[value["add"]], 8 * ones)
    assert torch.equal(seen[value["head"]], model.head(8 * ones))
    assert observer.run(as_inputs(4 * ones), begin) == {value["block"], value["add"], value["head"]}


def test_a_removal_whose_tensors_are_not_certain_has_no_impact_and_is_named():
    def forward(net, x):
        x = net.stem(x)
        for _ in range(1 if isinstance(x, FakeTensor) else 2):
            x = x + net.b(torch.relu(net.a(x)))
        return net.head(x)

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "head")}))
    scene = scene_of(model, [rows()])
    for score in (score_influence, score_output_change):
        evidence = score(scene)
        unknown = [r.name for r, i in zip(scene.removals, evidence.impacts, strict=True) if math.isnan(i)]
        assert unknown
        assert any("is not known" in note and unknown[0] in note for note in evidence.notes), evidence.notes


def test_a_part_is_told_by_its_place_even_where_nobody_reads_the_first():
    def forward(net, x):
        _, second, third = net.a(x).chunk(3, dim=-1)
        return net.head(torch.relu(second) + third * 2.0)

    model = randomised(Net(forward, a=linear(8, 24), head=linear()))
    graph, _ = record(model, as_inputs(rows()))
    layer = next(layer for layer in graph.layers if layer.function == "chunk")
    seen = {}
    Probe(real_sandbox(model), graph, layer.outputs).run(as_inputs(rows()), lambda: seen.__setitem__)
    parts = model.a(rows()).chunk(3, dim=-1)
    assert [torch.equal(seen[value], part) for value, part in zip(layer.outputs, parts[1:], strict=True)] == [True] * 2


class Several(nn.Module):
    """Returns a parameter, what it got twice, and something new."""

    def __init__(self):
        super().__init__()
        self.a = linear()
        self.table = nn.Parameter(torch.ones(8))

    def forward(self, x):
        y = self.a(x)
        return self.table, y, y, torch.tanh(y)


def test_results_are_told_by_their_place_among_parameters_and_repeats():
    def forward(net, x):
        table, y, _, last = net.several(x)
        return net.head(y * table + last)

    model = randomised(Net(forward, several=Several(), head=linear()))
    seen, _ = observed(model, rows(), ["several.tanh", "several.a"])
    assert torch.equal(seen["several.a"], model.several.a(rows()))
    assert torch.equal(seen["several.tanh"], torch.tanh(model.several.a(rows())))


def test_inputs_are_told_by_their_names_in_whatever_order_they_come():
    model = randomised(Net(lambda net, x, y: net.head(net.a(x) + torch.relu(y)), a=linear(), head=linear()))
    given = {"x": rows(seed=0), "y": rows(seed=1)}
    graph, _ = record(model, as_inputs(given))
    seen = {}
    observer = Probe(real_sandbox(model), graph, graph.inputs)
    observer.run(as_inputs(dict(reversed(given.items()))), lambda: seen.__setitem__)
    assert torch.equal(seen[graph.inputs[0]], given["x"])
    assert torch.equal(seen[graph.inputs[1]], given["y"])


@pytest.mark.parametrize("family", ["lfm2", *repeats("jamba", "qwen3_next")])
def test_every_tensor_that_a_removal_moves_is_the_one_that_the_simulation_finds(family):
    pytest.importorskip("transformers")
    from models.families import build  # imports transformers

    pruner = UniversalLayerPruner(build(family), criterion="magnitude")
    shade = real_sandbox(pruner.model)
    wanted = Tensors(pruner.graph, [s for r in pruner.removals for s in perturbations_of(pruner.graph, r)]).wanted
    seen = {}

    def begin():
        seen.clear()
        return lambda value, tensor: seen.setdefault(value, tensor.clone())

    found = Probe(shade, pruner.graph, wanted).run(pruner.inputs, begin)
    truth = located(shade.model, pruner.graph, wanted, **pruner.inputs.kwargs)
    assert found == set(truth) == set(wanted)
    for value in wanted:
        assert torch.equal(seen[value], truth[value]), pruner.graph.describe([value])
