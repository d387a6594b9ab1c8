"""Transforms that are solved before they run get the weights that they would get behind their call."""

import pytest
import torch
from test_repair import BATCHES, branched, tiny_llama, without
from test_reuse import inputs_for
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.capture import capture
from layerprune.fitting import Gram, Sums
from layerprune.inputs import as_inputs
from layerprune.repair import closed_form, find_sites, refit, repair
from layerprune.repair import solver as solving
from layerprune.repair import verdict as judging
from layerprune.repair.stream.schedule import solved_ahead, stop_of
from models.nets import Net, close, copy_of, linear, randomised, repeats, run


def ahead_of(model, pruned, edits, batch, fits=lambda site: True):
    graph = capture(pruned, as_inputs(batch))
    sites, _ = find_sites(capture(model, as_inputs(batch)), graph, pruned, edits)
    return solved_ahead(sites, graph, fits), {site.name: site for site in sites}, graph


def both(model, batches, group="branch", **options):
    """Repair with what can be solved ahead, and with nothing; returns both models and reports."""
    pruned, edits = without(model, group, batches[0])
    behind = copy_of(pruned)
    report = repair(model, pruned, batches, edits=edits, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit, "solved_ahead", lambda *_: frozenset())
        other = repair(model, behind, batches, edits=edits, **options)
    return pruned, behind, report, other


def test_what_follows_from_its_input_alone_is_solved_where_that_is_made():
    def forward(net, x):
        x = torch.tanh(net.stem(x))
        x = x + net.branch(x)
        y = net.one(x).view(-1, 2, 4).transpose(1, 2) * torch.sigmoid(net.other(x)).view(-1, 4, 2)
        return net.head(x + net.write(torch.tanh(y.reshape(-1, 8))))

    names = ("stem", "branch", "one", "other", "write", "head")
    model = randomised(Net(forward, **{name: linear() for name in names}))
    pruned, edits = without(model, "branch", BATCHES[0])
    ahead, sites, graph = ahead_of(model, pruned, edits, BATCHES[0])
    assert ahead == {"stem", "one", "other", "head"}  # what ``write`` makes is added to something
    assert stop_of(sites["one"], ahead) == stop_of(sites["other"], ahead) == sites["one"].source
    assert stop_of(sites["write"], ahead) == sites["write"].reached
    assert graph.name_of(sites["write"].reached) == "add_1"
    # Where ``one`` is not, what it makes is mended between what ``other`` reads and its call.
    assert ahead_of(model, pruned, edits, BATCHES[0], lambda site: site.name != "one")[0] == {"stem", "head"}


def test_what_reads_a_tensor_from_long_ago_is_solved_behind_its_call():
    """Between what ``late`` reads and its call another tensor is mended: the original would have to run far ahead."""

    def forward(net, x):
        first = torch.tanh(net.stem(x))
        x = first + net.branch(first)
        x = x + net.write(torch.tanh(x))
        return net.head(torch.tanh(x)) * net.late(first)

    names = ("stem", "branch", "write", "late", "head")
    model = randomised(Net(forward, **{name: linear() for name in names}))
    pruned, edits = without(model, "branch", BATCHES[0])
    assert ahead_of(model, pruned, edits, BATCHES[0])[0] == {"stem", "head"}


@pytest.mark.parametrize("bias", [True, False])
def test_new_weights_are_those_that_are_found_behind_the_call(bias):
    def forward(net, x):
        x = torch.tanh(net.stem(x))
        x = x + net.branch(x)
        return net.head(torch.tanh(net.one(x)) * torch.sigmoid(net.other(x)))

    parts = {name: nn.Linear(8, 8, bias=bias) for name in ("one", "other", "head")}
    model = randomised(Net(forward, stem=linear(), branch=linear(), **parts))
    pruned, behind, report, other = both(model, BATCHES)
    assert [one.name for one in report.refitted] == [one.name for one in other.refitted] == ["one", "other", "head"]
    for found, expected in zip(report.refitted, other.refitted, strict=True):
        assert found.left == pytest.approx(expected.left, rel=1e-3, abs=1e-5)
    for name, tensor in behind.named_parameters():
        assert close(pruned.get_parameter(name), tensor, 1e-3), name
    assert report.after == pytest.approx(other.after, rel=1e-3)


def test_padding_counts_for_nothing_ahead_either():
    model = tiny_llama(4, tied=False)
    pruned, behind, report, other = both(model, _padded(), "model.layers.1.mlp.down_proj")
    assert len(report.refitted) > 10
    assert [one.name for one in report.refitted] == [one.name for one in other.refitted]
    for name, tensor in behind.named_parameters():
        assert close(pruned.get_parameter(name), tensor, 1e-3), name


def _padded():
    draw = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        mask = torch.ones(6, 12, dtype=torch.long)
        mask[:3, 8:] = 0
        batches.append({"input_ids": torch.randint(0, 50, (6, 12), generator=draw), "attention_mask": mask})
    return batches


def test_forwards_run_on_with_the_new_weights_themselves(monkeypatch):
    """Where all is solved ahead, what the waiting forward returns are the bits of the repaired model."""
    found = []
    real = closed_form.ClosedFormRepair._judged
    monkeypatch.setattr(closed_form.ClosedFormRepair, "_judged", lambda *args: found.append(real(*args)) or found[-1])

    def forward(net, x):
        return net.head(torch.tanh(net.middle(torch.tanh(net.branch(torch.relu(net.stem(x)))))))

    names = ("stem", "branch", "middle", "head")
    model = randomised(Net(forward, **{name: linear() for name in names}))
    pruned, edits = without(model, "branch", BATCHES[0])
    report = repair(model, pruned, BATCHES, edits=edits)
    assert [one.name for one in report.refitted] == ["middle", "head"]
    assert torch.equal(found[0].mended, run(pruned, BATCHES[3]))


def test_sums_of_what_is_missing_are_those_of_what_is_wanted_less_what_is_made():
    draw = torch.Generator().manual_seed(0)
    read = torch.cat([torch.randn(1, 300, 8, generator=draw) + 0.5, torch.ones(1, 300, 1)], 2)
    matrix, wanted = torch.randn(1, 9, 5, generator=draw), torch.randn(1, 300, 5, generator=draw)
    gram = Gram(1, 8, device=read.device)
    gram.add(read)
    found, expected = Sums(gram, 5, bias=True), Sums(gram, 5, bias=True)
    found.add(read, wanted)
    found.subtract(matrix.double())
    expected.add(read, wanted - read @ matrix)
    assert close(found.cross, expected.cross, 1e-5)
    assert found.square == pytest.approx(expected.square, rel=1e-5)


@pytest.mark.parametrize("share", [1e-2, 1e-4])
def test_what_is_hardly_moved_is_told_from_what_the_transform_makes(monkeypatch, share):
    """Sums of single precision do not tell differences of a hundredth of a per cent from rounding."""
    ran = []
    real = solving.Solver.rows

    def seen(*args, **options):
        ran.append(options["ran"])
        return real(*args, **options)

    monkeypatch.setattr(solving.Solver, "rows", seen)

    def forward(net, x):
        x = torch.tanh(net.stem(x))
        return net.head(x + share**0.5 * net.branch(x))

    model = randomised(Net(forward, stem=linear(), branch=linear(), head=linear()))
    pruned, behind, report, other = both(model, BATCHES)
    assert report.refitted[0].left == pytest.approx(other.refitted[0].left, rel=1e-2, abs=1e-6)
    assert close(pruned.head.weight, behind.head.weight, 1e-3)
    assert (True in ran) == (share < 1e-3)


def test_a_branch_that_makes_next_to_nothing_leaves_no_trace():
    model = branched(torch.relu)
    with torch.no_grad():
        model.branch.weight.zero_()
        model.branch.bias.zero_()
    pruned, edits = without(model, "branch", BATCHES[0])
    report = repair(model, pruned, BATCHES, edits=edits)
    assert not report.refitted


@pytest.mark.parametrize("family", ["llama", "bert", *repeats("gpt2", "mixtral", "gemma2", "t5", "swin", "deberta_v2")])
def test_families_are_repaired_as_by_whole_forwards(family):
    """Nothing left out, nothing solved ahead, and the verdict on the repaired model's own forwards: the same."""
    pytest.importorskip("transformers")
    from models.families import build  # imports transformers

    model = build(family)
    batches = [inputs_for(model, seed) for seed in range(4)]
    pruner = UniversalLayerPruner(model, example_inputs=batches[0], criterion="magnitude")
    plan = pruner.plan(max_param_reduction=0.3)
    pruned, whole = plan.apply(model), plan.apply(model)
    report = repair(model, pruned, batches, edits=plan.edits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit, "solved_ahead", lambda *_: frozenset())
        patch.setattr(closed_form, "changed_sites", lambda sites, *_: sites)
        patch.setattr(judging, "ends", lambda *_: False)
        other = repair(model, whole, batches, edits=plan.edits)
    assert report.refitted
    assert [one.name for one in report.refitted] == [one.name for one in other.refitted]
    assert report.refused == other.refused
    assert report.after == pytest.approx(other.after, rel=1e-2, abs=1e-3 * report.before)
