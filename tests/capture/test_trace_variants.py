"""Variants: real forwards that are not what was recorded are recorded once, and every run is held against them."""

import functools
import gc
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from layerprune.capture import Probe, Variants, real_sandbox
from layerprune.capture import trace_variants as module
from layerprune.capture.capture import record
from layerprune.capture.trace_variants import MOST
from layerprune.inputs import as_inputs
from layerprune.tensors import tensors_in
from models.nets import Net, linear, randomised, rows


@pytest.fixture
def recorded(monkeypatch):
    """How many samples each recording of a real run had."""
    sizes = []

    def recording(shade, inputs):
        sizes.append(inputs.batch_size)
        return plain(shade, inputs)

    plain = module.record_on
    monkeypatch.setattr(module, "record_on", recording)
    return sizes


def with_extra(net, x, extra=lambda x: 1):
    """As many products and sums more as ``extra`` says, before those that count; none on fake tensors."""
    x = net.stem(x)
    for _ in range(0 if isinstance(x, FakeTensor) else extra(x)):
        net.level = (x.detach() * 0.5 + 1.0).mean()
    y = x * 2.0
    return net.head((y + torch.relu(net.a(torch.relu(y)))) * 1.0)


def netted(**options):
    parts = {name: linear() for name in ("stem", "a", "head")}
    return randomised(Net(functools.partial(with_extra, **options), **parts))


def watching(model, variants, graph=None):
    """An observer of the sum that counts, and what it shows: a function of the inputs."""
    graph = graph or record(model, as_inputs(rows()))[0]
    value = next(layer.outputs[0] for layer in graph.layers if layer.function == "add")
    observer = Probe(real_sandbox(model), graph, [value], variants)

    def look(x):
        seen = {}

        def begin():
            seen.clear()
            return lambda value, tensor: seen.__setitem__(value, tensor.clone())

        assert observer.run(as_inputs(x), begin) == set(seen)
        return seen.get(value)

    return observer, look


def truth(model, x):
    with torch.no_grad():
        y = model.stem(x) * 2.0
        return y + torch.relu(model.a(torch.relu(y)))


def test_what_one_observer_has_recorded_another_one_follows(recorded):
    model, known = netted(), Variants()
    first, look = watching(model, known)
    assert torch.equal(look(rows(4)), truth(model, rows(4)))
    assert recorded == [2]  # samples: few do
    _, again = watching(model, known, first.graph)
    assert torch.equal(again(rows(5)), truth(model, rows(5)))
    assert recorded == [2]
    _, other = watching(model, Variants(), first.graph)
    assert torch.equal(other(rows(4)), truth(model, rows(4)))
    assert recorded == [2, 2]


def test_batches_that_take_turns_are_recorded_once_each(recorded):
    model = netted(extra=lambda x: len(x) - 4)
    _, look = watching(model, None)
    for size in (4, 5, 6, 4, 6, 5, 4, 6):
        assert torch.equal(look(rows(size)), truth(model, rows(size)))
    # A recording of two samples is what the layer graph says already: from then on all samples are recorded.
    assert recorded == [2, 5, 6]


def test_where_few_samples_do_otherwise_all_are_recorded(recorded):
    model, known = netted(extra=lambda x: 2 if len(x) > 2 else 1), Variants()
    observer, look = watching(model, known)
    assert torch.equal(look(rows(4)), truth(model, rows(4)))
    assert recorded == [2, 4]
    assert [variant.is_of_few for variant in known.of(observer.graph)] == [False]


def test_steps_of_each_sample_are_not_missed_for_having_recorded_few():
    def forward(net, x):
        x = net.stem(x)
        if not isinstance(x, FakeTensor):
            net.level = x.mean()
        return net.head(torch.stack([torch.tanh(net.a(one)) * 1.0 for one in x]))

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "head")}))
    graph, _ = record(model, as_inputs(rows()))
    wanted = {layer.outputs[0] for layer in graph.layers if layer.function == "mul"}
    assert len(wanted) == 4
    observer = Probe(real_sandbox(model), graph, wanted)
    assert observer.run(as_inputs(rows()), lambda: lambda value, tensor: None) == wanted


def test_a_variant_counts_for_its_own_layer_graph_only(recorded):
    model, known = netted(), Variants()
    watching(model, known)[1](rows(4))
    other = netted()
    assert torch.equal(watching(other, known)[1](rows(4)), truth(other, rows(4)))
    assert recorded == [2, 2]


def test_few_are_remembered_and_neither_tensors_nor_models():
    model, known = netted(extra=lambda x: len(x)), Variants()
    observer, look = watching(model, known)
    for size in range(3, 3 + 2 * MOST):
        assert torch.equal(look(rows(size)), truth(model, rows(size)))
    assert len(known.of(observer.graph)) == MOST
    assert len(observer.watchers) == MOST + 1
    assert observer.graph in [watcher.recorded[0] for watcher in observer.watchers]
    assert not tensors_in(known)
    gone = weakref.ref(observer.shade.model)
    del observer, look
    gc.collect()
    assert gone() is None


def test_a_run_that_does_less_is_seen_whole_again_after_one_that_did_more(recorded):
    def forward(net, x):
        for _ in range(1 if float(x.detach().max()) > 1.0 else 2):
            x = x + net.block(x)
        return net.head(x)

    model = randomised(Net(forward, block=nn.Linear(8, 8), head=linear()))
    graph, _ = record(model, as_inputs(2 * torch.ones(4, 8)))
    wanted = {layer.outputs[0] for layer in graph.layers if layer.name in ("block", "add", "head")}
    known = Variants()
    for _ in range(2):
        observer = Probe(real_sandbox(model), graph, wanted, known)
        assert observer.run(as_inputs(0.5 * torch.ones(4, 8)), lambda: lambda value, tensor: None) < wanted
        assert observer.run(as_inputs(2 * torch.ones(4, 8)), lambda: lambda value, tensor: None) == wanted
    assert recorded == [2, 4]  # of few samples not all is certain, which all of them might have told
