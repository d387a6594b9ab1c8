"""Lanes: forwards that wait go on with what was written meanwhile, and leave nothing behind."""

import threading
from dataclasses import replace

import pytest
import torch
from test_repair import BATCHES, branched, without
from torch import nn

from layerprune.capture import ActivationStore, capture, real_sandbox, record_on
from layerprune.inputs import as_inputs
from layerprune.repair import Site, closed_form, find_sites, refit, repair
from layerprune.repair.stream.model_run import ModelRun
from layerprune.repair.stream.suspended_forward import SuspendedForward, closing
from models.nets import Net, Photograph, copy_of, linear, randomised, rows, run, same_bits


def value_of(graph, name):
    (layer,) = [layer for layer in graph.layers if layer.name == name]
    return layer.outputs[0]


def lane_of(model, x, *names):
    graph = capture(model, as_inputs(x))
    return SuspendedForward(real_sandbox(model), graph, {value_of(graph, name) for name in names}, as_inputs(x)), graph


def sums(net, x):
    """A sum that a function reads before a module does."""
    total = net.stem(x) + x
    doubled = 2 * total
    return net.head(total) + doubled


def test_what_is_written_into_a_tensor_is_what_all_its_readers_read():
    model, x = randomised(Net(sums, stem=linear(), head=linear())), rows(4)
    graph = capture(model, as_inputs(x))
    total = value_of(graph, "add")
    lane = SuspendedForward(real_sandbox(model), graph, {total, value_of(graph, "head")}, as_inputs(x))
    value, tensor = lane.next()
    assert value == total
    with torch.no_grad():
        tensor.fill_(1)
    seen = lane.next()[1].clone()
    assert torch.equal(seen, run(model.head, torch.ones(4, 8)))
    lane.close()


def test_a_lane_ends_where_the_forward_takes_other_steps_than_those_that_were_recorded():
    def forward(net, x):
        x = net.stem(x)
        y = net.head(x)
        return y * 2 if bool((x > 1e6).any()) else y + 1

    model = randomised(Net(forward, stem=linear(), head=linear()))
    graph = record_on(real_sandbox(model), as_inputs(rows(4)))
    values = {value_of(graph, name) for name in ("stem", "add")}
    lane = SuspendedForward(real_sandbox(model), graph, values, as_inputs(rows(4) * 1e9))
    with closing([lane]):
        assert lane.next()[0] == value_of(graph, "stem")
        assert lane.next() is None


def test_lanes_take_turns_and_stop_where_they_are_told():
    model = randomised(Net(sums, stem=linear(), head=linear()))
    suspended_forwards = [lane_of(model, rows(4, seed=seed), "stem", "head")[0] for seed in range(3)]
    others = set(threading.enumerate())
    with closing(suspended_forwards):
        stems = [lane.next()[1].clone() for lane in suspended_forwards]
        for seed, stem in enumerate(stems):
            assert torch.equal(stem, run(model.stem, rows(4, seed=seed)))
        assert suspended_forwards[1].next() is not None
        assert suspended_forwards[1].next() is None
        assert suspended_forwards[1].next() is None
        assert len(set(threading.enumerate()) - others) >= 2, "two wait"
    assert set(threading.enumerate()) <= others
    assert suspended_forwards[0].next() is None


def test_a_lane_does_not_stop_where_it_is_told_to_go_by_and_shows_in_its_own_thread_what_is_there():
    model, x = randomised(Net(sums, stem=linear(), head=linear())), rows(4)
    graph = capture(model, as_inputs(x))
    stem, total, head = (value_of(graph, name) for name in ("stem", "add", "head"))
    by = {}

    def passes(value, tensor):
        if value == total:
            return False
        by[value] = tensor.detach().clone(), threading.current_thread()
        return True

    lane = SuspendedForward(real_sandbox(model), graph, {stem, total, head}, as_inputs(x), passes=passes)
    with closing([lane]):
        assert lane.next()[0] == total
        assert by.keys() == {stem}
        assert lane.next() is None
    assert torch.equal(by[stem][0], run(model.stem, x))
    assert by.keys() == {stem, head}
    assert all(thread is not threading.current_thread() for _, thread in by.values())


def test_a_lane_that_may_goes_on_to_the_end_for_the_output():
    model, x = randomised(Net(sums, stem=linear(), head=linear())), rows(4)
    graph = capture(model, as_inputs(x))
    for num_stops in (1, 2):
        lane = SuspendedForward(
            real_sandbox(model), graph, {value_of(graph, n) for n in ("stem", "add")}, as_inputs(x), to_end=True
        )
        with closing([lane]):
            for _ in range(num_stops):
                assert lane.next() is not None
            assert lane.output is None
            lane.finish()
            assert torch.equal(lane.output, run(model, x))
    never = SuspendedForward(real_sandbox(model), graph, {value_of(graph, "stem")}, as_inputs(x), to_end=True)
    never.finish()
    assert never.output is None


def test_what_a_forward_raises_comes_out_where_it_is_asked_for_the_next_value():
    def forward(net, x):
        x = net.stem(x)
        if bool((x > 1e6).any()):
            raise ValueError("too large")
        return net.head(x)

    model = randomised(Net(forward, stem=linear(), head=linear()))
    graph = record_on(real_sandbox(model), as_inputs(rows(4)))
    values = {value_of(graph, "stem"), value_of(graph, "head")}
    lane = SuspendedForward(real_sandbox(model), graph, values, as_inputs(rows(4) * 1e9))
    with closing([lane]):
        assert lane.next() is not None
        with pytest.raises(ValueError, match="too large"):
            lane.next()


def noting(net, x):
    device = torch.get_default_device().type
    print(torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), device)  # a list would be put back
    return net.head(net.stem(x))


@pytest.mark.parametrize("setting", ["inference", "autocast", "device"])
def test_a_lane_runs_under_the_settings_of_who_asks(setting, capsys):
    model = randomised(Net(noting, stem=linear(), head=linear()))
    lane, _ = lane_of(model, rows(4), "head")
    context = {
        "inference": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "device": torch.device("meta"),
    }[setting]
    with context, closing([lane]):
        assert lane.next() is not None
    seen = capsys.readouterr().out.splitlines()[-1]
    assert seen == f"{setting == 'inference'} {setting == 'autocast'} {'meta' if setting == 'device' else 'cpu'}"


# ---- repair by lanes ------------------------------------------------------------------------------------------------


def test_a_repair_takes_one_forward_of_either_model():
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    assert repair(model, pruned, BATCHES, edits=edits).num_forwards == (1, 1)


def test_batches_that_may_not_wait_start_anew_and_give_the_same_weights():
    """The first batch always waits; 3 sites are 3 forwards more or less for each of the others."""

    def forward(net, x):
        x = torch.tanh(net.stem(x))
        x = x + net.branch(x)
        x += net.write(torch.relu(x))
        return net.head(torch.tanh(net.middle(torch.tanh(x))))

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "branch", "write", "middle", "head")}))
    pruned, edits = without(model, "branch", BATCHES[0])
    anew = copy_of(pruned)
    together = repair(model, pruned, BATCHES, edits=edits)
    apart = repair(
        model, anew, BATCHES, edits=edits, memory_bytes=8_000
    )  # a batch holds 2,560 or so, a fit takes 6,120
    assert together.num_forwards == (1, 1)
    assert apart.num_forwards > (1, 1)
    assert (
        [one.name for one in together.refitted] == [one.name for one in apart.refitted] == ["write", "middle", "head"]
    )
    for name in ("write", "middle", "head"):
        expected, found = (net.get_submodule(name).weight for net in (pruned, anew))
        assert torch.allclose(expected, found, atol=1e-4)


@pytest.mark.parametrize("memory_bytes", [2**30, 8_000])
def test_the_verdict_knows_outputs_from_recordings_and_the_originals_where_its_forward_waits(monkeypatch, memory_bytes):
    known = []
    judge = closed_form.judge

    def seen(model, shades, batches, harm):
        known.extend((one.original, one.before) for one in batches)
        return judge(model, shades, batches, harm)

    monkeypatch.setattr(closed_form, "judge", seen)
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    batches = [*BATCHES, *(batch + 0.5 for batch in BATCHES)]
    expected = [(run(model, batch), run(pruned, batch)) for batch in batches[6:]]
    report = repair(model, pruned, batches, edits=edits, memory_bytes=memory_bytes)
    assert report.after < report.before
    (original, before), (waited, anew) = known  # of the last two of eight batches
    assert torch.equal(original, expected[0][0])
    assert torch.equal(before, expected[0][1])
    assert anew is None
    if memory_bytes > 8_000:
        assert torch.equal(waited, expected[1][0])
    else:
        assert waited is None


@pytest.mark.parametrize("last", [None, 1])
def test_the_batch_that_is_recorded_does_not_run_again_in_the_original(monkeypatch, last):
    """It is a batch that is judged by, unless that holds another number of samples than the first."""
    suspended_forwards = []
    lane = ModelRun.lane

    def counted(side, batch, values, shade=None, **options):
        suspended_forwards.append((side.model is model, [one is batch.inputs.args[0] for one in batches].index(True)))
        return lane(side, batch, values, shade, **options)

    monkeypatch.setattr(ModelRun, "lane", counted)
    model = branched(torch.relu)
    batches = [*BATCHES[:3], BATCHES[3][:last]]
    pruned, edits = without(model, "branch", BATCHES[0])
    assert repair(model, pruned, batches, edits=edits).num_forwards == (1, 1)
    recorded = 0 if last else 3
    assert sorted(number for is_original, number in suspended_forwards if is_original) == [
        n for n in range(4) if n != recorded
    ]
    assert sorted(number for is_original, number in suspended_forwards if not is_original) == [0, 1, 2, 3]


def test_what_is_held_is_as_it_was_when_a_later_layer_has_written_into_it():
    """The sum is what the head's writer is fitted to; then it is overwritten in place."""

    def forward(net, x):
        x = torch.tanh(net.stem(x))
        x = x + net.branch(x)
        x = x + net.write(torch.tanh(x))
        y = net.head(x)
        x.mul_(0)
        return y + x

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "branch", "write", "head")}))
    pruned, edits = without(model, "branch", BATCHES[0])
    anew = copy_of(pruned)
    repair(model, pruned, BATCHES, edits=edits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActivationStore, "keep", lambda *_, **__: None)
        repair(model, anew, BATCHES, edits=edits)
    assert same_bits(pruned, anew)


def test_the_bytes_that_a_forward_holds_are_those_of_what_is_still_read():
    """Through a chain two tensors at a time; a shortcut holds a third."""
    chain = nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU())
    graph = capture(chain, as_inputs(rows(4)))
    assert ModelRun(model=chain, shade=real_sandbox(chain), graph=graph).live_bytes == 2 * 4 * 8 * 4
    shortcut = randomised(Net(lambda net, x: x + net.head(torch.relu(net.stem(x))), stem=linear(), head=linear()))
    graph = capture(shortcut, as_inputs(rows(4)))
    assert ModelRun(model=shortcut, shade=real_sandbox(shortcut), graph=graph).live_bytes == 3 * 4 * 8 * 4


@pytest.mark.parametrize("when", ["solving", "running"])
def test_an_interrupt_leaves_the_unrepaired_model_and_no_thread(monkeypatch, when):
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    before, rng, fast = Photograph(pruned), torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    threads = set(threading.enumerate())
    where = {"solving": (refit.Solver, "change"), "running": (refit.Lockstep, "views")}[when]
    calls = []
    real = getattr(*where)

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(*where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        repair(model, pruned, BATCHES, edits=edits)
    assert len(calls) == 2, "in the middle: one transform was solved before"
    assert before == Photograph(pruned)
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert set(threading.enumerate()) <= threads


def test_a_forward_that_draws_leaves_the_rng_as_it_was():
    def forward(net, x):
        return net.head(torch.relu(net.stem(x) + net.branch(net.stem(x)) + 1e-6 * torch.rand(1)))

    model = branched(torch.relu)
    drawing = Net(forward, stem=model.stem, branch=model.branch, head=model.head)
    rng = torch.get_rng_state()
    repair(drawing, copy_of(drawing), BATCHES)
    assert torch.equal(rng, torch.get_rng_state())
    assert same_bits(drawing.stem, model.stem)


def site(num_gaps):
    return Site(name="name", source=0, reached=1, target=2, scales=(), num_gaps=num_gaps)


def test_solving_stops_behind_those_that_won_next_to_nothing_and_goes_on_at_the_next_gap():
    patience = refit.Patience(outputs=[9])
    for won in (0.5, 0.2, *[0.005] * (refit.PATIENCE - 1)):
        patience.learn(site(1), won)
        assert patience.holds(site(1))
    patience.learn(site(1), 0.02)  # above a fiftieth of the most
    for _ in range(refit.PATIENCE):
        assert patience.holds(site(1))
        patience.learn(site(1), 0.0)
    assert not patience.holds(site(1))
    assert patience.holds(replace(site(1), reached=9))  # what the model returns
    assert patience.holds(site(2))
    patience.learn(site(2), 0.001)  # the most behind this gap
    assert patience.holds(site(2))


def test_gaps_are_where_layers_read_something_else_than_before():
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    graphs = capture(model, as_inputs(BATCHES[0])), capture(pruned, as_inputs(BATCHES[0]))
    assert [(one.name, one.num_gaps) for one in find_sites(*graphs, pruned, edits)[0]] == [("stem", 1), ("head", 1)]
    assert [one.num_gaps for one in find_sites(graphs[0], graphs[0], model)[0]] == [0, 0, 0]


def test_transforms_far_behind_a_gap_are_left_and_counted():
    """What a removed layer did is brought back by the first transform; ten more have nothing to win."""

    def forward(net, x):
        x = net.stem(x)
        x = torch.tanh(x + net.branch(torch.tanh(x)))
        for block in net.blocks:
            x = x + 0.1 * torch.tanh(block(x))
        return net.head(x)

    blocks = nn.ModuleList(linear() for _ in range(10))
    model = randomised(Net(forward, stem=linear(), branch=linear(), blocks=blocks, head=linear()))
    pruned, edits = without(model, "branch", BATCHES[0])
    report = repair(model, pruned, BATCHES, edits=edits)
    (note,) = [note for note in report.notes if "next to nothing" in note]
    assert len(report.refitted) < 10
    assert note.startswith(f"{12 - len(report.refitted)} transforms")
