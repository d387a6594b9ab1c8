"""What a recorded forward has shown is held as it was, without what stays within a layer, and within its bytes."""

import torch
from torch import nn

from layerprune.capture import ActivationStore, record_real
from layerprune.inputs import as_inputs
from layerprune.modules import WeakTensorKeys
from models.nets import Net, linear, randomised, rows, run


class Scaled(nn.Module):
    """A layer of several functions, of which one result leaves it."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.gain * x * x.pow(2).mean(-1, keepdim=True).rsqrt()


def held(model, x, most_bytes=2**20):
    holding = ActivationStore(most_bytes)
    graph, _ = record_real(model, as_inputs(x), holding)
    named = {graph.layers[graph.values[value].layer].name: tensor for value, tensor in holding.tensors.items()}
    return holding, named


def test_what_leaves_a_layer_with_weights_is_held_and_sums_are_and_views_of_these():
    def forward(net, x):
        return torch.relu((net.scaled(net.stem(x)) + x).view(-1))

    model, x = randomised(Net(forward, stem=linear(), scaled=Scaled())), rows(4)
    holding, named = held(model, x)
    assert list(named) == ["stem", "scaled", "add", "view"]  # not what stays in a layer, nor what an activation makes
    stem = run(model.stem, x)
    scaled = run(model.scaled, stem)
    for name, expected in {"stem": stem, "scaled": scaled, "add": scaled + x, "view": scaled + x}.items():
        assert torch.equal(named[name], expected.reshape(named[name].shape))
    assert holding.num_bytes == 3 * 4 * 8 * 4  # the view lies in the sum
    assert torch.equal(holding.output, run(model, x))


def test_what_is_written_into_later_is_held_as_it_was_with_its_views():
    def forward(net, x):
        x = net.stem(x)
        half = x[:, :4]
        x.add_(1)
        return half + 2

    model, x = randomised(Net(forward, stem=linear())), rows(4)
    _, named = held(model, x)
    stem = run(model.stem, x)
    assert torch.equal(named["stem"], stem)
    assert torch.equal(named["getitem"], stem[:, :4])
    assert torch.equal(named["add"], stem + 1)
    assert torch.equal(list(named.values())[-1], (stem[:, :4] + 1) + 2)


def test_a_forward_that_makes_more_than_may_be_held_shows_its_output_only():
    model, x = randomised(nn.Sequential(linear(), nn.ReLU(), linear())), rows(4)
    assert len(held(model, x, most_bytes=2 * 4 * 8 * 4)[0].tensors) == 2
    holding, named = held(model, x, most_bytes=2 * 4 * 8 * 4 - 1)
    assert not named
    assert holding.num_bytes == 0
    assert torch.equal(holding.output, run(model, x))


def test_a_tensor_that_has_got_the_id_of_another_one_is_not_known():
    keys, tensor, other = WeakTensorKeys(), torch.zeros(1), torch.zeros(1)
    keys[tensor] = 7
    assert tensor in keys
    assert keys[tensor] == 7
    assert other not in keys
    keys.values[id(other)] = keys.values[id(tensor)]
    assert keys.get(other) is None
    del tensor
    assert keys.get(other) is None
