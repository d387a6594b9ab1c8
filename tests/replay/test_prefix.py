"""What the pruned model makes as the original did is handed on, where that is certain; the verdict is on real runs."""

import pytest
import torch
from test_repair import BATCHES, without
from torch import nn

from layerprune.capture import ActivationStore, Shared, read_calibration, real_sandbox, record_real
from layerprune.inputs import as_inputs
from layerprune.modules import no_fast_path
from layerprune.repair import closed_form, refit, repair
from layerprune.repair import verdict as judging
from layerprune.repair.verdict import Judged, judge
from layerprune.replay import handing
from models.nets import Net, copy_of, linear, randomised, rows, run, same_bits


class Calls:
    """The rows of each call; a list by itself would be put back after each forward."""

    __slots__ = ("rows",)


CALLS = Calls()
CALLS.rows = []


class Counted(nn.Linear):
    def forward(self, x):
        CALLS.rows.append(len(x))
        return super().forward(x)


class Pair(nn.Module):
    """A module that returns two tensors and a number."""

    def __init__(self):
        super().__init__()
        self.one, self.other = Counted(8, 8), Counted(8, 8)

    def forward(self, x):
        return {"x": self.one(x), "rest": [self.other(x), 2]}


def deep(front, read=lambda made: made, **parts):
    """A front, a branch that goes, and what is behind."""

    def forward(net, x):
        x = torch.tanh(read(net.front(x)))
        x = x + net.branch(torch.tanh(x))
        return net.head(torch.tanh(net.write(torch.tanh(x)) + x))

    names = {"branch": linear(), "write": linear(), "head": linear()}
    return randomised(Net(forward, front=front, **names, **parts))


def repaired(model, batches=BATCHES, change=lambda pruned: None, pruned=None):
    """Repair in both ways: with what was handed on, and without; returns the names of the calls handed on."""
    pruned, edits = (pruned, ()) if pruned is not None else without(model, "branch", batches[0])
    change(pruned)
    whole, found = copy_of(pruned), []
    CALLS.rows.clear()
    with pytest.MonkeyPatch.context() as patch:
        shared = refit.Refitter.shared
        patch.setattr(refit.Refitter, "shared", lambda *args: found.extend(shared(*args)) or tuple(found))
        report = repair(model, pruned, batches, edits=edits)
    calls = list(CALLS.rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit.Refitter, "shared", lambda *_: ())
        assert repair(model, whole, batches, edits=edits).refitted == report.refitted
    assert report.kept
    assert same_bits(pruned, whole)
    return [frame.fqn for frame in found], calls


def test_what_lies_before_the_first_gap_runs_in_the_original_only():
    model = deep(nn.Sequential(Counted(8, 8), nn.Tanh(), Counted(8, 8)))
    names, calls = repaired(model)
    assert names == ["front"]
    # Two recordings, three batches through the original, an eighth of the last one for the verdict: two layers each.
    assert sorted(calls) == sorted([40, 40] * 5 + [5, 5])


def test_what_a_call_returns_is_built_again():
    names, _ = repaired(deep(Pair(), lambda made: made["x"] + made["rest"][0] * made["rest"][1]))
    assert names == ["front"]


def test_a_weight_that_the_recorded_batch_does_not_show_counts():
    """Of an embedding some rows were trained further: the batch that is recorded has none of them."""
    batches = [torch.randint(0, 20, (40,), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    batches.append(torch.randint(0, 10, (40,), generator=torch.Generator().manual_seed(3)))
    model = deep(nn.Sequential(nn.Embedding(20, 8), linear()))

    def change(pruned):
        with torch.no_grad():
            pruned.front[0].weight[10:] += 0.5

    assert repaired(model, batches)[0] == ["front"]
    assert repaired(model, batches, change)[0] == []


class Notes(nn.Module):
    """Counts its calls."""

    def __init__(self):
        super().__init__()
        self.linear, self.num_calls = linear(), 0

    def forward(self, x):
        self.num_calls += 1
        return self.linear(x)


class Writes(nn.Module):
    """Writes into what it takes."""

    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, x):
        return self.linear(x.add_(1))


class Keeps(nn.Module):
    """Leaves a tensor where the model finds it."""

    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, x):
        self.seen = self.linear(x)
        return torch.tanh(self.seen)


class Once(nn.Module):
    """Is called twice."""

    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, x):
        return self.linear(self.linear(x))


def hooked():
    front = nn.Sequential(linear())
    front[0].register_forward_hook(lambda module, args, out: None)
    return front


@pytest.mark.parametrize(
    ("make", "handed"),
    [(Notes, ["front.linear"]), (Writes, ["front.linear"]), (hooked, []), (Once, ["front"])],
)
def test_a_call_that_does_more_than_return_tensors_runs(make, handed):
    assert repaired(deep(make()))[0] == handed


def test_a_call_of_which_somebody_reads_what_it_does_not_return_runs():
    def forward(net, x):
        y = net.front(x)
        x = y + net.front.seen
        if "branch" in net._modules:
            x = x + net.branch(torch.tanh(x))
        return net.head(torch.tanh(x))

    model = randomised(Net(forward, front=Keeps(), branch=linear(), head=linear()))
    pruned = copy_of(model)
    del pruned.branch
    assert repaired(model, pruned=pruned)[0] == ["front.linear"]


def test_what_the_model_writes_into_is_copied():
    """The front's result is overwritten in place: in the original, too, which hands on what it was."""

    def forward(net, x):
        x = net.front(x)
        y = torch.tanh(x)
        x.mul_(y)
        y = y + torch.tanh(x)
        y = y + net.branch(y)
        return net.head(torch.tanh(y))

    model = randomised(Net(forward, front=nn.Sequential(Counted(8, 8)), branch=linear(), head=linear()))
    assert repaired(model)[0] == ["front"]


def test_only_what_is_the_same_up_to_the_first_difference_is_shared():
    model = randomised(nn.Sequential(linear(), linear(), nn.Tanh(), linear()))
    other = copy_of(model)
    with torch.no_grad():
        other[1].weight[0] += 1
    held = ActivationStore(2**20)
    graph, _ = record_real(model, as_inputs(BATCHES[0]), held)
    shared = Shared(held)
    record_real(other, as_inputs(BATCHES[0]), shared)
    assert [graph.name_of(value) for value in shared.values] == ["0"]
    assert torch.equal(shared.output, run(other, BATCHES[0]))
    nothing = Shared(ActivationStore(0))
    record_real(copy_of(model), as_inputs(BATCHES[0]), nothing)
    assert not nothing.values


def test_calls_run_where_something_of_what_they_return_is_not_known():
    model = randomised(nn.Sequential(linear(), linear()))
    shade = real_sandbox(model)
    graph, _ = record_real(model, as_inputs(BATCHES[0]))
    (frame,) = [frame for frame in graph.frames if frame.fqn == "0"]
    (value,) = frame.outputs
    with torch.no_grad():
        with handing(shade.model, graph, [frame], {value: torch.zeros(40, 8)}):
            assert torch.equal(shade.model(BATCHES[0]), model[1](torch.zeros(40, 8)))
        with handing(shade.model, graph, [frame], {}):
            assert torch.equal(shade.model(BATCHES[0]), model(BATCHES[0]))
        assert "forward" not in vars(shade.model[0])


# ---- the verdict ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("off", "num_rows"), [(0.0, [1]), (0.1, [1, 8])])
def test_a_mended_output_counts_where_the_repaired_model_confirms_it(off, num_rows):
    model = randomised(nn.Sequential(Counted(8, 8), linear()))
    batch = read_calibration([rows(8)], model)[0]
    shade = real_sandbox(model)
    graph, _ = record_real(model, batch.inputs)
    with torch.no_grad(), no_fast_path():
        out = model(rows(8))
    CALLS.rows.clear()
    one = Judged(batch, original=out * 1.5, before=out * 2, mended=out + off)
    verdict = judge(model, (shade, shade, shade), graph, [one], None)
    assert [*CALLS.rows] == num_rows
    assert verdict.after == pytest.approx(float((out / 2).norm() / (out * 1.5).norm()) ** 2, rel=1e-5)


def test_the_verdict_does_not_trust_a_mended_forward_that_went_wrong(monkeypatch):
    """Where changes were not made, the real model is run, and the verdict is the same."""
    model = deep(nn.Sequential(linear()))
    found = []
    whole = judging._output
    monkeypatch.setattr(judging, "_output", lambda shade, batch: found.append(batch.num_samples) or whole(shade, batch))
    pruned, edits = without(model, "branch", BATCHES[0])
    broken = copy_of(pruned)
    right = repair(model, pruned, BATCHES, edits=edits)
    assert found == [5]
    found.clear()
    waits = closed_form.ClosedFormRepair._judged

    def wrong(*args):
        one = waits(*args)
        one.mended.add_(0.1)
        return one

    monkeypatch.setattr(closed_form.ClosedFormRepair, "_judged", wrong)
    assert repair(model, broken, BATCHES, edits=edits).after == pytest.approx(right.after, rel=1e-4)
    assert found == [5, 40]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.branch = Counted(8, 8), linear()

    def forward(self, x):
        x = self.linear(x)
        return x + self.branch(torch.tanh(x))


def test_a_model_that_was_pruned_before_is_pruned_and_repaired_again():
    """What stands in for the first branch is in both models; nothing can be read off it."""
    model, _ = without(deep(nn.Sequential(Residual(), linear())), "front.0.branch", BATCHES[0])
    assert repaired(model)[0] == ["front"]


def test_a_tensor_of_a_form_of_its_own_is_the_same_only_where_it_is_the_same_object():
    model = deep(nn.Sequential(linear(), linear()))
    model.front[1].table = torch.eye(3).to_sparse()
    assert repaired(model)[0] == ["front.0"]
