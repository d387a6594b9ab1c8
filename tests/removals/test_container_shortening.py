"""Renumbering: elements leave their containers on request, and the model's own smaller class loads what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from layerprune import PruningPlan, UniversalLayerPruner, load_pruned
from layerprune.edits import Shorten, name_before
from models.nets import linear, randomised, rows, run


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = linear(8, 12), linear(12, 8)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return x + scale * self.down(torch.tanh(self.up(x)))


class Deep(nn.Module):
    """Loops over a list of blocks of whatever length."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.stem, self.head = linear(), linear(8, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, 0.5)
        return self.head(x)


class Placed(Deep):
    """Does something else at every place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x, 1 / (i + 1))
        return self.head(x)


class Indexed(Deep):
    """Counts on four blocks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(4):
            x = self.blocks[i](x, 0.5)
        return self.head(x)


def pruner_of(model: nn.Module, **options: bool) -> UniversalLayerPruner:
    return UniversalLayerPruner(model, example_inputs=rows(), granularity="block", **options)


REMOVED_VALUE = ["blocks.1.up", "blocks.2.up"]


def test_the_smaller_class_loads_what_is_left() -> None:
    model = randomised(Deep())
    pruner = pruner_of(model, renumber=True)
    plan = pruner.plan(groups=REMOVED_VALUE)
    assert plan.edits == (Shorten(fqn="blocks", removed=(1, 2)),)
    assert not plan.needs_layerprune
    pruned = pruner.prune(plan=plan)
    small = Deep(2)
    small.load_state_dict(pruned.state_dict())
    assert torch.equal(run(small.eval(), rows(7)), run(pruned, rows(7)))
    with torch.no_grad():
        by_hand = model.head(model.blocks[3](model.blocks[0](model.stem(rows(7)), 0.5), 0.5))
    assert torch.allclose(run(pruned, rows(7)), by_hand)


def test_without_the_request_names_stay() -> None:
    pruned = pruner_of(randomised(Deep())).prune(groups=REMOVED_VALUE)
    assert "blocks.3.up.weight" in pruned.state_dict()
    assert len(pruned.blocks) == 4


@pytest.mark.parametrize("cls", [Placed, Indexed])
def test_where_the_forward_counts_places_stand_ins_stay(cls: type[Deep]) -> None:
    model = randomised(cls())
    pruned = pruner_of(model, renumber=True).prune(groups=REMOVED_VALUE)
    assert len(pruned.blocks) == 4
    kept = {0: model.blocks[0], 3: model.blocks[3]}
    with torch.no_grad():
        x = model.stem(rows(7))
        for i, block in kept.items():
            x = block(x, 1 / (i + 1) if cls is Placed else 0.5)
        assert torch.allclose(run(pruned, rows(7)), model.head(x))


def test_a_sequential_that_is_the_model_closes_its_gaps() -> None:
    def chain(depth: int) -> nn.Sequential:
        return nn.Sequential(linear(), *(layer for _ in range(depth) for layer in (nn.Tanh(), linear())), linear(8, 3))

    model = randomised(chain(3))
    pruned = UniversalLayerPruner(model, example_inputs=rows(), renumber=True).prune(groups=["2"])
    assert list(pruned._modules) == [str(i) for i in range(len(pruned))]
    left = [module for module in model if any(module_is(module, other) for other in pruned)]
    assert torch.allclose(run(nn.Sequential(*left), rows()), run(pruned, rows()))
    assert not any(module_is(model[2], other) for other in pruned)


def module_is(one: nn.Module, other: nn.Module) -> bool:
    if isinstance(one, nn.Linear) and isinstance(other, nn.Linear):
        return one.weight.shape == other.weight.shape and torch.equal(one.weight, other.weight)
    return type(one) is type(other)


def test_it_is_saved_loaded_and_replayed(tmp_path: Path) -> None:
    model = randomised(Deep())
    pruner = pruner_of(model, renumber=True)
    pruned = pruner.prune(groups=REMOVED_VALUE)
    pruner.save(tmp_path / "small")
    assert torch.equal(run(load_pruned(tmp_path / "small", factory=Deep).eval(), rows()), run(pruned, rows()))
    plan = PruningPlan.from_json(pruner.plan(groups=REMOVED_VALUE).to_json())
    assert torch.equal(run(plan.apply(model), rows()), run(pruned, rows()))


def test_it_is_repaired_by_its_old_names() -> None:
    model = randomised(Deep())
    batches = [rows(32, seed=seed) for seed in range(4)]
    pruner = UniversalLayerPruner(model, calibration=batches, granularity="block", renumber=True)
    pruned = pruner.prune(max_param_reduction=0.5)
    assert len(pruned.blocks) < 4
    assert pruner.repair_report is not None
    assert Deep(len(pruned.blocks)).load_state_dict(pruned.state_dict())


def test_names_before_of_elements_of_the_model_itself() -> None:
    assert name_before("1.weight", [Shorten(fqn="", removed=(0, 1))]) == "3.weight"
    assert name_before("1.2.weight", [Shorten(fqn="", removed=(0,)), Shorten(fqn="2", removed=(1,))]) == "2.3.weight"
