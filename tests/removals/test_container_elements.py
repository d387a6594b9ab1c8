"""Elements of a container that return several tensors: all go at once, each by the argument that it comes from."""

import copy

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner, applied
from layerprune.modules import num_params
from models.nets import close, linear, randomised, rows, tokens


class Pair(nn.Module):
    """Two streams, each updated from both; returned in one of several ways."""

    def __init__(self, way, last=False):
        super().__init__()
        self.both, self.a, self.b = nn.Linear(16, 8), linear(), linear()
        self.way, self.last = way, last

    def forward(self, x, y):
        z = torch.relu(self.both(torch.cat([x, y], -1)))
        if self.way == "written":
            x, y = x.mul_(2), y.mul_(3)
        x, y = x + self.a(z), y + self.b(z)
        if self.last:
            return None, y
        if self.way == "swapped":
            return y, x
        return {"x": x, "y": y} if self.way == "dict" else [x, y] if self.way == "list" else (x, y)


class Streams(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.i, self.j, self.out = linear(), linear(), nn.Linear(16, 2)
        self.way = way
        self.blocks = nn.ModuleList(Pair(way, way == "last" and place == 3) for place in range(4))

    def forward(self, x):
        a, b = self.i(x), self.j(x)
        for block in self.blocks:
            made = block(a, b)
            if self.way == "swapped":
                b, a = made
            else:
                a, b = made.values() if self.way == "dict" else made
        return self.out(torch.cat([b if a is None else a, b], -1))


@pytest.mark.parametrize("granularity", ["block", "group"])
@pytest.mark.parametrize("way", ["tuple", "list", "dict", "swapped", "last", "written"])
def test_a_block_of_two_streams_leaves_as_a_whole(way, granularity):
    model = randomised(Streams(way))
    pruner = UniversalLayerPruner(model, example_inputs=rows(), granularity=granularity)
    whole = {removal.name: removal for removal in pruner.removals if removal.kind == "block"}
    count = 3 if way == "last" else 4
    assert {f"blocks.{i} by its inputs" for i in range(count)} <= whole.keys()
    assert not any("[" in name for name in whole)
    for place in range(count):
        by_hand, pruned = copy.deepcopy(model), copy.deepcopy(model)
        del by_hand.blocks[place]
        removal = whole[f"blocks.{place} by its inputs"]
        with applied(pruned, removal.edits):
            assert num_params(pruned) == num_params(by_hand)
            assert close(pruned(rows()), by_hand(rows()))


def test_several_blocks_of_two_streams_leave_within_a_budget():
    model = randomised(Streams("tuple"))
    pruner = UniversalLayerPruner(model, example_inputs=rows(), granularity="block")
    plan = pruner.plan(max_param_reduction=0.5)
    gone = [int(removal.name.split(".")[1].split()[0]) for removal in plan.removals]
    by_hand = copy.deepcopy(model)
    by_hand.blocks = nn.ModuleList(block for place, block in enumerate(model.blocks) if place not in gone)
    assert gone
    assert close(pruner.prune(plan=plan)(rows()), by_hand(rows()))


def test_a_block_of_whose_results_one_comes_from_no_argument_does_not_leave_by_half():
    """The second result is made anew in each block and read behind all of them: only parts of a block may go."""

    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear(), nn.Linear(8, 3)

        def forward(self, x):
            x = x + self.a(x)
            return x, self.b(x)

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = linear(), linear(8, 3)
            self.blocks = nn.ModuleList(Side() for _ in range(3))

        def forward(self, x):
            x, sides = self.stem(x), []
            for block in self.blocks:
                x, side = block(x)
                sides.append(side)
            return self.head(x) + sum(sides[1:], sides[0])

    model = randomised(Deep())
    whole = UniversalLayerPruner(model, example_inputs=tokens(), granularity="block")
    assert not [removal for removal in whole.removals if removal.kind == "block"]
    parts = UniversalLayerPruner(model, example_inputs=tokens())
    assert any(removal.groups == ("blocks.1.a",) for removal in parts.removals)
