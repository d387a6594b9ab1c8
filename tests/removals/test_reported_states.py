"""Hidden states that layers report by the way, in hooks and lists, and that the forward reads by their places."""

import copy
from contextvars import ContextVar

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner, applied
from models.nets import close, randomised, tokens

STATES: ContextVar[list | None] = ContextVar("STATES", default=None)
SHARED: list = []


class Block(nn.Module):
    """Reports what it makes, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.up, self.down, self.way = nn.Linear(8, 16), nn.Linear(16, 8), way

    def compute(self, x):
        return x + self.down(torch.relu(self.up(x)))

    def forward(self, x, states=None):
        out = self.compute(x)
        if self.way == "a list that it is given":
            states.append(out)
        elif self.way == "a context":
            STATES.get().append(out * 1)  # another tensor than the one that it returns
        elif self.way == "a list of the Python module":
            SHARED.append(out)
        return out


class Reporting(nn.Module):
    """Reads what its blocks have reported; where by hooks, its first forward installs them and sets a flag."""

    def __init__(self, read, way):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Block(way) for _ in range(4))
        self.read, self.way = read, way

    def forward(self, x):
        if self.way == "hooks" and not getattr(self, "hooked", False):
            for block in self.blocks:
                if isinstance(block, Block):
                    block.register_forward_hook(report)
            self.hooked = True
        x = self.stem(x)
        states = [x]
        token = STATES.set(states)
        SHARED[:] = [x]
        try:
            for block in self.blocks:
                x = block(x, states) if self.way == "a list that it is given" else block(x)
            return self.head(self.read(list(SHARED) if self.way == "a list of the Python module" else states))
        finally:
            STATES.reset(token)


def report(module, args, out):
    states = STATES.get()
    if states is not None:
        states.append(out)


def by_hand(model, removal):
    """The model with each block handing on what it gets, which it still reports."""
    left = copy.deepcopy(model)
    for name in {group.rpartition(".")[0] for group in removal.groups}:
        left.get_submodule(name).compute = lambda x: x
    return left


WAYS = ["hooks", "a list that it is given", "a context"]
READS = {
    "the sum of all": lambda states: torch.stack(states).sum(0),
    "the third": lambda states: states[2],
    "the last but one": lambda states: states[-2],
}


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_called_safe_reads_the_states_of_the_layers_that_it_read(way, read, has_run):
    """Where a whole block goes, the places of those behind it shift; a branch may go, and the block still reports."""
    model = randomised(Reporting(READS[read], way))
    if has_run:
        model(tokens())
    pruner = UniversalLayerPruner(model, example_inputs=tokens())
    if has_run and way == "hooks":
        assert len(model.blocks[0]._forward_hooks) == 1
    for removal in (removal for removal in pruner.removals if removal.kind in ("branch", "block")):
        pruned = copy.deepcopy(model)
        with applied(pruned, removal.edits):
            for _ in range(2):
                assert close(pruned(tokens()), by_hand(model, removal)(tokens())), removal


def test_a_model_that_installs_hooks_when_it_first_runs_is_planned_alike_before_and_after():
    model = randomised(Reporting(READS["the sum of all"], "hooks"))
    fresh = UniversalLayerPruner(copy.deepcopy(model), example_inputs=tokens())
    model(tokens())
    used = UniversalLayerPruner(model, example_inputs=tokens())
    assert [removal.name for removal in fresh.removals] == [removal.name for removal in used.removals]
    assert [module._forward_hooks for module in model.modules()] == [
        module._forward_hooks for module in used.model.modules()
    ]
