"""A forward that writes into the list that it is given gets a list of its own each time that it is run."""

import copy

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner, applied
from layerprune.cost import compare_latency
from layerprune.inputs import as_inputs
from layerprune.modules import num_params
from models.nets import close, randomised, rows


class Stage(nn.Module):
    """Two pathways in one list, as in SlowFast: each is written over by what this stage makes of it."""

    def __init__(self):
        super().__init__()
        self.slow, self.fast = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x[0] = x[0] + torch.relu(self.slow(x[0]))
        x[1] = x[1] + torch.relu(self.fast(x[1]))
        return x


class Pathways(nn.Module):
    """The stem changes the width of what lies in the list, so that a list which ran before does not fit again."""

    def __init__(self):
        super().__init__()
        self.slow, self.fast = nn.Linear(6, 8), nn.Linear(3, 8)
        self.stages = nn.ModuleList(Stage() for _ in range(3))
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x[0], x[1] = self.slow(x[0]), self.fast(x[1])
        for stage in self.stages:
            x = stage(x)
        return self.head(torch.cat(x, 1))


def pathways():
    return [rows(4, 6), rows(4, 3, seed=2)]


@pytest.fixture
def model():
    return randomised(Pathways())


def test_what_the_plan_calls_safe_is_removed_and_equal_to_the_removal_by_hand(model):
    given = pathways()
    pruner = UniversalLayerPruner(model, example_inputs=(given,))
    safe = [group.name for group in pruner.groups if group.can_remove]
    assert len(safe) == 6
    assert [tuple(tensor.shape) for tensor in given] == [(4, 6), (4, 3)]
    for removal in pruner.removals:
        by_hand, pruned = copy.deepcopy(model), copy.deepcopy(model)
        for name in removal.groups:
            by_hand.get_submodule(name).register_forward_hook(lambda module, args, out: torch.zeros_like(out))
        with applied(pruned, removal.edits):
            assert close(pruned(pathways()), by_hand(pathways()))


def test_a_budget_is_used_with_calibration_data_too(model):
    data = [(pathways(),) for _ in range(3)]
    pruner = UniversalLayerPruner(model, calibration=data, example_inputs=(pathways(),))
    pruned = pruner.prune(max_param_reduction=0.3)
    assert 0.7 * num_params(model) <= num_params(pruned) < num_params(model)


def test_such_a_model_is_timed(model):
    found = compare_latency({"model": model}, as_inputs((pathways(),)), rounds=2, block_s=0.001)
    assert found["model"].median_ms > 0
