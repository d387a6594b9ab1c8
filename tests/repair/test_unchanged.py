"""Sites before any difference between the models are not looked at; what is repaired and written is the same."""

import pytest
import torch
from test_repair import BATCHES, without
from torch import nn

from layerprune.capture import record_real
from layerprune.inputs import as_inputs
from layerprune.repair import closed_form, repair
from layerprune.repair.sites.unchanged import changed_sites
from models.nets import Net, copy_of, linear, randomised, same_bits


def deep(front, **parts):
    """A front, a branch that goes, and what is behind."""

    def forward(net, x):
        x = torch.tanh(net.front(x))
        x = x + net.branch(torch.tanh(x))
        return net.head(torch.tanh(net.write(torch.tanh(x)) + x))

    names = {"branch": linear(), "write": linear(), "head": linear()}
    return randomised(Net(forward, front=front, **names, **parts))


def left_out(monkeypatch, model, batches=BATCHES, change=lambda pruned: None, group="branch"):
    """The names of the sites that a repair does not look at; one that looks at all does the same."""
    pruned, edits = without(model, group, batches[0])
    change(pruned)
    before, whole, found = copy_of(pruned), copy_of(pruned), []

    def seen(sites, *args):
        some = changed_sites(sites, *args)
        found.extend(site.name for site in sites if site not in some)
        return some

    with monkeypatch.context() as patch:
        patch.setattr(closed_form, "changed_sites", seen)
        report = repair(model, pruned, batches, edits=edits)
    with monkeypatch.context() as patch:
        patch.setattr(closed_form, "changed_sites", lambda sites, *_: sites)
        assert repair(model, whole, batches, edits=edits).refitted == report.refitted
    assert report.kept
    assert same_bits(pruned, whole)
    for name in found:
        assert same_bits(pruned.get_submodule(name), before.get_submodule(name))
    return found


def test_what_lies_before_the_first_gap_is_not_looked_at(monkeypatch):
    model = deep(nn.Sequential(linear(), nn.Tanh(), linear()))
    assert left_out(monkeypatch, model) == ["front.0", "front.2"]


def test_a_weight_that_the_recorded_batch_does_not_show_counts(monkeypatch):
    """Of an embedding some rows were trained further: the batch that is recorded has none of them."""
    batches = [torch.randint(0, 20, (40,), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    batches.append(torch.randint(0, 10, (40,), generator=torch.Generator().manual_seed(3)))
    model = deep(nn.Sequential(nn.Embedding(20, 8), linear()))

    def change(pruned):
        with torch.no_grad():
            pruned.front[0].weight[10:] += 0.5

    assert left_out(monkeypatch, model, batches) == ["front.1"]
    assert left_out(monkeypatch, model, batches, change) == []


class Gain(nn.Module):
    """Multiplies by a weight of another module, a buffer, and a number."""

    def __init__(self, other):
        super().__init__()
        self.held = [other]
        self.register_buffer("shift", torch.zeros(8))
        self.factor = 1.0

    def forward(self, x):
        return (x * self.held[0].weight[0] + self.shift) * self.factor


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda pruned: None, ["front.0", "front.2"]),
        (lambda pruned: pruned.front[0].weight.data.mul_(1.1), []),
        (lambda pruned: pruned.table.weight.data.mul_(1.1), ["front.0"]),
        (lambda pruned: pruned.front[1].shift.add_(1), ["front.0"]),
        (lambda pruned: setattr(pruned.front[1], "factor", 2.0), ["front.0"]),
        (lambda pruned: pruned.front[2].bias.data.add_(1), ["front.0"]),
    ],
)
def test_weights_buffers_and_settings_of_each_layer_up_to_there_count(monkeypatch, change, expected):
    table = linear()
    model = deep(nn.Sequential(linear(), Gain(table), linear()), table=table)
    assert left_out(monkeypatch, model, change=change) == expected


def test_a_gap_right_at_the_output_counts_where_no_layer_reads_it():
    """Without the head the stem feeds what the head did."""
    model = randomised(Net(lambda net, x: net.head(net.stem(x)), stem=linear(), head=linear()))
    pruned = copy_of(model)
    pruned.head = nn.Identity()
    assert repair(model, pruned, BATCHES).kept
    assert not same_bits(pruned.stem, model.stem)


def test_a_sum_that_is_the_gap_counts_where_no_layer_reads_it(monkeypatch):
    model = randomised(Net(lambda net, x: net.stem(x) + net.branch(x), stem=linear(), branch=linear()))
    assert left_out(monkeypatch, model) == []


def test_what_is_written_into_later_is_left_out_just_so(monkeypatch):
    def forward(net, x):
        x = net.front(x)
        y = torch.tanh(x)
        x.mul_(y)
        y = y + torch.tanh(x)
        y = y + net.branch(y)
        return net.head(torch.tanh(y))

    model = randomised(Net(forward, front=nn.Sequential(linear()), branch=linear(), head=linear()))
    assert left_out(monkeypatch, model) == ["front.0"]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.branch = linear(), linear()

    def forward(self, x):
        x = self.linear(x)
        return x + self.branch(torch.tanh(x))


def test_a_model_that_was_pruned_before_is_pruned_and_repaired_again(monkeypatch):
    """What stands in for the first branch is in both models; nothing can be read off it."""
    model, _ = without(deep(nn.Sequential(Residual(), linear())), "front.0.branch", BATCHES[0])
    assert left_out(monkeypatch, model) == ["front.0.linear", "front.1"]


def test_a_tensor_of_a_form_of_its_own_is_the_same_only_where_it_is_the_same_object(monkeypatch):
    model = deep(nn.Sequential(linear(), linear()))
    model.front[1].table = torch.eye(3).to_sparse()
    assert left_out(monkeypatch, model) == ["front.0"]


def test_of_two_equal_models_nothing_is_left_to_look_at():
    model = deep(linear())
    other = copy_of(model)
    graph, _ = record_real(other, as_inputs(BATCHES[0]))
    sites, _ = closed_form.find_sites(graph, graph, other)
    assert len(sites) == 4
    assert changed_sites(sites, graph, model, other) == []
