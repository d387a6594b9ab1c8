"""Hidden states that layers report by the way, in hooks and lists, and that the forward reads by their places."""

from contextvars import ContextVar

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from nets import randomised, tokens

STATES: ContextVar[list | None] = ContextVar("STATES", default=None)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Reporting(nn.Module):
    """Its first forward installs hooks on the blocks, and sets a flag; as transformers models do."""

    def __init__(self, read):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.read = read

    def forward(self, x):
        if not getattr(self, "hooked", False):
            for block in self.blocks:
                block.register_forward_hook(report)
            self.hooked = True
        x = self.stem(x)
        token = STATES.set([x])
        try:
            for block in self.blocks:
                x = block(x)
            states = STATES.get()
        finally:
            STATES.reset(token)
        return self.head(self.read(states))


def report(module, args, out):
    states = STATES.get()
    if states is not None:
        states.append(out)


def reporting(read):
    return randomised(Reporting(read))


@pytest.mark.parametrize("has_run", [False, True])
def test_a_model_that_installs_hooks_when_it_first_runs_is_planned_alike_before_and_after(has_run):
    """All states are summed, so that a block has to report one without its branch, too."""
    model = reporting(lambda states: torch.stack(states).sum(0))
    if has_run:
        model(tokens())
    hooks = [len(module._forward_hooks) for module in model.modules()]
    pruner = UniversalLayerPruner(model, example_inputs=tokens())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    safe = {group.name for group in pruner.groups if group.can_remove}
    assert safe == {f"blocks.{i}.{name}" for i in range(4) for name in ("up", "down")}
