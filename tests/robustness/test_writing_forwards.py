"""A forward that writes is run by every public function, by two threads at once, and leaves all where it was."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import numpy as np
import pytest
import torch
from torch import nn

from layerprune import (
    UniversalLayerPruner,
    compare,
    distill,
    load_pruned,
    quick_prune,
    repair,
    save_pruned,
)
from layerprune.capture import real_sandbox
from layerprune.cost import compare_latency, measure
from layerprune.environment import exclusive
from layerprune.export import export_onnx
from layerprune.inputs import as_inputs
from layerprune.modules import no_fast_path
from layerprune.repair.batchnorm import reestimate
from models.nets import Photograph, randomised, rows

BATCHES = [rows(8, seed=seed) for seed in range(4)]
LOG: list[int] = []


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.relu(self.linear(self.norm(x)))


class Writing(nn.Module):
    """Three residual blocks, and a forward that writes as ``write`` says."""

    def __init__(self, write):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("count", torch.zeros(()))
        self.calls, self.seen = 0, []
        self.stem, self.blocks, self.head = nn.Linear(8, 8), nn.ModuleList(Block() for _ in range(3)), nn.Linear(8, 4)
        self.write = write

    def forward(self, x):
        x = self.stem(x) * self.scale
        for block in self.blocks:
            x = block(x)
        self.write(self)
        return self.head(x * self.scale)


def through_data(net):
    net.scale.data.mul_(0.5)


def through_a_view(net):
    net.scale.detach()[:4].add_(1)


@torch.no_grad()
def in_place(net):
    net.scale.mul_(0.5)


def new_memory(net):
    net.scale.data = net.scale.data * 0.5


def buffer(net):
    net.count += 1


def attribute(net):
    net.calls += 1


def held_list(net):
    net.seen.append(1)


def global_list(net):
    LOG.append(1)


def generators(net):
    torch.rand(1), random.random(), np.random.rand()


def switches(net):
    torch.backends.mha.set_fastpath_enabled(False)


def what_the_model_holds(net):
    buffer(net)
    attribute(net)
    held_list(net)


def what_the_process_holds(net):
    global_list(net)
    generators(net)
    switches(net)


ALONE = [through_data, through_a_view, in_place, new_memory, buffer, attribute, held_list, global_list, generators]
TOGETHER = [through_data, what_the_model_holds, what_the_process_holds]


def state_of_process():
    numpy = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        (numpy[1].tolist(), *numpy[2:]),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        list(LOG),
    )


def of_writer(model):
    """What only the forward writes, of a model that a function may change otherwise."""
    return model.scale.tolist(), model.scale.requires_grad, model.count.item(), model.calls, list(model.seen)


def shorter(model):
    """The model without its second block, as a plan of a known removal makes it."""
    with exclusive():  # until another thread's run ends, the memory of the parameters holds what it has written
        pruned = copy.deepcopy(model)
    pruned.blocks[1] = nn.Identity()
    return pruned


def by_two_threads(call, model):
    """Let two threads call a function on one model, and require that it, and the process, are as they were."""
    before, process = Photograph(model), state_of_process()
    with ThreadPoolExecutor(2) as pool:
        found = [each.result() for each in [pool.submit(call, model) for _ in range(2)]]
    assert Photograph(model).difference(before) == ""
    assert state_of_process() == process
    return found


def compared(model):
    return str(compare(model, shorter(model), BATCHES))


def timed(model):
    times = compare_latency({"one": model, "other": shorter(model)}, as_inputs(BATCHES[0]), rounds=2, block_s=0.001)
    return sorted(times)


def measured(model):
    return measure(model, as_inputs(BATCHES[0])).macs


def with_new_statistics(model):
    pruned = shorter(model)
    before = of_writer(pruned)
    names = reestimate(pruned, BATCHES)
    assert len(names) == 2
    assert of_writer(pruned) == before
    return [pruned.blocks[0].norm.running_mean.tolist(), names]


def repaired(model):
    pruned = shorter(model)
    before = of_writer(pruned)
    try:
        report = repair(model, pruned, BATCHES)
    finally:
        assert of_writer(pruned) == before
    return str(report)


def distilled(model):
    pruned = shorter(model)
    before = of_writer(pruned)[1:]
    report = distill(model, pruned, BATCHES, num_epochs=1, num_evaluations=1)
    assert of_writer(pruned)[1:] == before  # the parameter is trained
    return report.losses


def planned(model):
    pruner = UniversalLayerPruner(model, example_inputs=BATCHES[0], calibration=BATCHES, criterion="ablation")
    return pruner.plan(max_param_reduction=0.4).to_json()


def pruned_by(model):
    pruner = UniversalLayerPruner(model, example_inputs=BATCHES[0], calibration=BATCHES)
    pruned = pruner.prune(max_param_reduction=0.4)
    assert of_writer(pruned) == of_writer(model)
    return str(pruner.saving(pruner.plan(max_param_reduction=0.4)))


def quickly_pruned(model):
    pruned = quick_prune(model, 0.4, example_inputs=BATCHES[0])
    assert of_writer(pruned) == of_writer(model)
    return sorted(pruned.state_dict())


@pytest.mark.parametrize("call", [compared, timed, with_new_statistics], ids=lambda call: call.__name__)
@pytest.mark.parametrize("way", ALONE, ids=lambda way: way.__name__)
def test_a_way_to_write_is_taken_back(way, call):
    one, other = by_two_threads(call, randomised(Writing(way)))
    assert one == other


@pytest.mark.parametrize(
    "call", [measured, repaired, planned, pruned_by, quickly_pruned], ids=lambda call: call.__name__
)
@pytest.mark.parametrize("way", TOGETHER, ids=lambda way: way.__name__)
def test_every_function_leaves_all_as_it_was(way, call):
    one, other = by_two_threads(call, randomised(Writing(way)))
    assert one == other


@pytest.mark.parametrize("way", [through_data, what_the_model_holds, generators], ids=lambda way: way.__name__)
def test_a_training_leaves_all_as_it_was(way):
    """But for what a forward logs elsewhere: a training is a use of the model."""
    one, other = by_two_threads(distilled, randomised(Writing(way)))
    assert one == other


def test_each_batch_meets_the_parameters_that_the_user_has():
    """Batches in another order give the same: nothing that one has written is there for the next."""
    model = randomised(Writing(through_data))
    forth, back = compare(model, shorter(model), BATCHES), compare(model, shorter(model), BATCHES[::-1])
    assert forth.relative_l2.value == pytest.approx(back.relative_l2.value)


def test_saving_and_loading_leave_all_as_it_was(tmp_path):
    model = randomised(Writing(through_data))
    pruned = quick_prune(model, 0.4, example_inputs=BATCHES[0])
    folders = iter([tmp_path / "one", tmp_path / "other"])

    def saved_and_loaded(pruned):
        again = load_pruned(save_pruned(pruned, next(folders)), model)
        return [value.tolist() for value in again.state_dict().values()]

    before = Photograph(model)
    one, other = by_two_threads(saved_and_loaded, pruned)
    assert one == other
    assert Photograph(model).difference(before) == ""


def test_an_export_leaves_all_as_it_was(tmp_path):
    pytest.importorskip("onnxruntime")

    def exported(model):
        return str(export_onnx(model, tmp_path / "net.onnx", BATCHES[0]))

    one, other = by_two_threads(exported, randomised(Writing(through_data)))
    assert one == other


# ---- what is of the process ------------------------------------------------------------------------------------------


def test_the_fast_path_is_on_again_after_users_that_end_in_another_order():
    assert torch.backends.mha.get_fastpath_enabled()
    one, other = no_fast_path(), no_fast_path()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not torch.backends.mha.get_fastpath_enabled()
    other.__exit__(None, None, None)
    assert torch.backends.mha.get_fastpath_enabled()


def test_torch_compiles_again_after_sandboxes_that_end_in_another_order():
    import torch._dynamo  # nothing is switched before that

    one, other = (real_sandbox(nn.Linear(8, 8)).running() for _ in range(2))
    with torch.enable_grad():  # a mode of the thread; where the order is another one, each forward has its own thread
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        other.__exit__(None, None, None)
    calls = []
    torch.compile(nn.Linear(8, 8), backend=lambda graph, _: calls.append(1) or graph.forward)(rows())
    assert calls == [1]


def test_the_lock_may_be_taken_again_inside():
    """And others get it only once the outermost user has given it back."""
    entered = Event()

    def enter():
        with exclusive():
            entered.set()

    other = Thread(target=enter)
    with exclusive():
        with exclusive():
            other.start()
        assert not entered.wait(0.05)
    other.join()
    assert entered.is_set()


def test_one_thread_at_a_time_has_the_lock():
    inside, most = [0], [0]

    def count(_):
        for _ in range(200):
            with exclusive():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert most == [1]
