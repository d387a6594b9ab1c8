"""Stem and head: what is protected by default, what is not, and that what is not can go."""

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.errors import CriticalGroupError
from models.nets import Net, close, conv, image, linear, randomised, rows, run, tokens
from oracle.checks import Oracle


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = linear(8, 12), linear(12, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = linear(), linear(), linear(), linear()

    def forward(self, x):
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1)
        return x + self.o(weights @ self.v(x))


class Conditioned(nn.Module):
    """A block with an embedder of the time step for itself."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = linear(), linear()

    def forward(self, x, t):
        return x + self.mix(x * torch.sigmoid(self.embed(t))[:, None])


def diffusion(net, x, t):
    y = net.s(x)
    for block in (net.one, net.two):
        y = block(y, t)
    return net.h(y)


def ids(batch=2):
    return torch.randint(0, 11, (batch, 5), generator=torch.Generator().manual_seed(batch))


def language_model():
    return nn.Sequential(nn.Embedding(11, 8), Attention(), Residual(), linear(8, 11))


def recurrent(net, x):
    return net.h(net.lstm(net.words(x))[0])


def shared_by_two_inputs(net, x, y):
    return net.h(torch.tanh(net.s(x)) - torch.tanh(net.s(y)))


def around_all(net, x):
    return x - net.b(torch.relu(net.a(x)))


def split_first(net, x):
    return net.h(torch.cat([net.a(x[:, :4]), net.b(x[:, 4:])], 1))


def of_statistics(net, x):
    mean = x.mean(1, keepdim=True)
    return net.b(torch.relu(net.a(x - mean))) + mean


#: Of each net its inputs, for a batch size, and the groups that are a stem.
STEMS = {
    "a chain": (lambda: nn.Sequential(linear(), nn.ReLU(), linear(), linear()), lambda b: (rows(b),), {"0"}),
    "branches of a concat": (
        lambda: Net(lambda n, x: n.h(torch.cat([n.a(x), n.b(x)], 1)), a=conv(3, 4), b=conv(3, 5), h=conv(9, 4)),
        lambda b: (image(b),),
        set(),
    ),
    "parts of the input": (
        lambda: Net(split_first, a=linear(4), b=linear(4), h=linear()), lambda b: (rows(b),), set(),
    ),
    "terms of a sum": (
        lambda: Net(lambda n, x: n.h(n.a(x) + n.b(x)), a=linear(), b=linear(), h=linear()), lambda b: (rows(b),), set(),
    ),
    "residual branches": (lambda: nn.Sequential(Residual(), Residual(), linear()), lambda b: (rows(b),), set()),
    "a residual around all": (lambda: Net(around_all, a=linear(), b=linear()), lambda b: (rows(b),), {"a"}),
    "statistics that come back": (lambda: Net(of_statistics, a=linear(), b=linear()), lambda b: (rows(b),), {"a"}),
    "embedders in every block": (
        lambda: Net(diffusion, s=linear(), one=Conditioned(), two=Conditioned(), h=linear()),
        lambda b: (tokens(b), rows(b)),
        {"s"},
    ),
    "a language model": (language_model, lambda b: (ids(b),), set()),
    "a recurrence behind an embedding": (
        lambda: Net(recurrent, words=nn.Embedding(11, 8), lstm=nn.LSTM(8, 8, batch_first=True), h=linear()),
        lambda b: (ids(b),),
        set(),
    ),
    "one for two inputs": (
        lambda: Net(shared_by_two_inputs, s=linear(), h=linear()), lambda b: (rows(b), rows(b, seed=2)), {"s"},
    ),
    "one for each input": (
        lambda: Net(lambda n, x, y: n.h(n.a(x) + n.b(y)), a=linear(), b=linear(), h=linear()),
        lambda b: (rows(b), rows(b, seed=2)),
        {"a", "b"},
    ),
}  # fmt: skip


def prepared(name):
    build, inputs, stems = STEMS[name]
    model = randomised(build()).double()
    examples = [tuple(x.double() if x.is_floating_point() else x for x in inputs(batch)) for batch in (2, 3)]
    return model, examples, stems


@pytest.mark.parametrize("name", STEMS)
def test_a_stem_is_what_alone_reads_an_input(name):
    model, (example, _), stems = prepared(name)
    pruner = UniversalLayerPruner(model, example_inputs=example)
    assert {group.name for group in pruner.groups if group.reason_code == "stem"} == stems


@pytest.mark.parametrize("name", STEMS)
def test_what_is_no_stem_any_more_leaves_as_in_the_simulation(name):
    model, (example, fresh), stems = prepared(name)
    oracle = Oracle(model, (example, {}), (fresh, {}))
    assert stems or oracle.pruner.removals
    for removal in oracle.checkable:
        assert stems.isdisjoint(removal.groups)
        oracle.check_removal(removal)
    for share in (0.5, 0.9) if oracle.checkable else ():
        oracle.check_plan(oracle.pruner.plan(max_param_reduction=share, slack=0))


def test_of_branches_that_read_the_input_each_may_go_and_one_stays():
    model, (example, _), _ = prepared("branches of a concat")
    pruner = UniversalLayerPruner(model, example_inputs=example)
    assert {r.groups for r in pruner.removals} >= {("a",), ("b",)}
    with pytest.raises(CriticalGroupError, match="cannot all be removed together"):
        pruner.plan(groups=["a", "b"])
    pruned = pruner.prune(groups=["a"])
    by_hand = nn.functional.conv2d(model.b(*example), model.h.weight[:, 4:], model.h.bias, padding=1)
    assert close(run(pruned, *example), by_hand)


def test_the_first_block_of_a_language_model_leaves():
    model, (example, _), _ = prepared("a language model")
    pruned = UniversalLayerPruner(model, example_inputs=example, granularity="branch").prune(groups=["1.o"])
    words, _, mlp, head = model
    assert close(run(pruned, *example), head(mlp(words(*example))))


def test_a_recurrence_behind_an_embedding_leaves():
    model, (example, _), _ = prepared("a recurrence behind an embedding")
    pruned = UniversalLayerPruner(model, example_inputs=example).prune(groups=["lstm"])
    assert close(run(pruned, *example), model.h(model.words(*example)))


def test_each_embedder_of_the_time_step_leaves():
    model, (example, _), _ = prepared("embedders in every block")
    pruned = UniversalLayerPruner(model, example_inputs=example).prune(groups=["one.embed"])
    x, t = example
    y = model.s(x)
    by_hand = model.h(model.two(y + model.one.mix(y), t))
    assert close(run(pruned, x, t), by_hand)


# ---- heads ---------------------------------------------------------------------------------------------------------


def two_heads(join):
    """Two heads that keep the shape, so that only what they are keeps them from leaving."""
    return Net(lambda n, x: join(n.p(torch.tanh(y := n.s(x))), n.q(y)), s=linear(), p=linear(), q=linear())


HEADS = {
    "a tuple": lambda p, q: (p, q),
    "a concat": lambda p, q: torch.cat([p, q], -1),
    "a stack": lambda p, q: torch.stack([p, q], 1),
    "a concat of reshaped": lambda p, q: torch.cat([p.view(-1, 4, 2), q.view(-1, 4, 2)], 1).softmax(-1),
    "a stack that is split again": lambda p, q: torch.stack([p, q]).unbind(0),
    "rows of one tensor": lambda p, q: torch.cat([p, q]).reshape(2, -1, 8).transpose(0, 1),
    "a hstack": lambda p, q: torch.hstack([p, q]),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_joined_before_the_output_are_heads(name):
    model = randomised(two_heads(HEADS[name]))
    groups = {g.name: g for g in UniversalLayerPruner(model, example_inputs=rows()).groups}
    assert {n for n, g in groups.items() if g.reason_code == "head"} == {"p", "q"}
    free = UniversalLayerPruner(model, example_inputs=rows(), protect_io=False)
    assert {g.name for g in free.groups if g.can_remove} >= {"p", "q"}


@pytest.mark.parametrize("merge", ["add", "mul"])
def test_what_a_sum_or_a_product_merges_before_the_output_is_no_head(merge):
    join = {"add": lambda p, q: torch.cat([p + q, q]), "mul": lambda p, q: torch.stack([p * q, p])}[merge]
    model = randomised(two_heads(join))
    heads = {g.name for g in UniversalLayerPruner(model, example_inputs=rows()).groups if g.reason_code == "head"}
    assert heads == {"q" if merge == "add" else "p"}


def test_the_reason_names_the_option_that_lets_stem_and_head_go():
    pruner = UniversalLayerPruner(randomised(nn.Sequential(*(linear() for _ in range(3)))), example_inputs=rows())
    with pytest.raises(CriticalGroupError, match=r"'2' cannot be removed: .*protect_io=False"):
        pruner.plan(groups=["2"])
    assert "reads the model's input; protect_io=False lets it go" in pruner.render_plan()


def test_a_pattern_says_more_than_that_it_is_the_stem():
    model = randomised(nn.Sequential(linear(), linear(), linear()))
    pruner = UniversalLayerPruner(model, example_inputs=rows(), protect=["0"])
    assert {g.name: g.reason for g in pruner.groups}["0"] == "protected by '0'"
