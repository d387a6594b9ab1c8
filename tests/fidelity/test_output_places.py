"""Outputs are compared place by place: a list of hidden states has as many entries, whichever are one tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import layerprune
from layerprune import UniversalLayerPruner
from layerprune.errors import CalibrationError
from layerprune.export import export_onnx
from layerprune.fidelity import Divergence, compare
from layerprune.tensors import tensors_by_place, tensors_in
from models.nets import linear, randomised, rows, run

BATCHES = [rows(8, seed=seed) for seed in range(4)]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = linear(8, 12), linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Pyramid(nn.Module):
    """Returns the state after every block, as backbones and encoders do."""

    def __init__(self, num_blocks: int = 3) -> None:
        super().__init__()
        self.stem = linear()
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        states = [self.stem(x)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states


MODEL = randomised(Pyramid())


def without(number: int, x: Tensor) -> list[Tensor]:
    """The states without one block, by hand: one of them is there twice."""
    with torch.no_grad():
        states = [MODEL.stem(x)]
        for i, block in enumerate(MODEL.blocks):
            states.append(states[-1] if i == number else block(states[-1]))
    return states


def changes(number: int) -> list[Tensor]:
    """The relative change of each state, on all batches together, as one (state, sample) table."""
    pairs = [(torch.stack(run(MODEL, x)), torch.stack(without(number, x))) for x in BATCHES]
    return [(b - a).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1) for a, b in pairs]


def test_every_place_counts_and_nothing_twice_at_one() -> None:
    x, y = rows(), rows(seed=2)
    inside: list[object] = [x]
    inside.append(inside)  # a container in itself is no further place
    assert [t is x for t in tensors_by_place([x, (y, x), {"again": inside}])] == [True, False, True, True]
    assert len(tensors_in([x, (y, x), {"again": inside}])) == 2

    class Both(dict[str, Tensor]):
        pass

    both = Both(x=x)
    both.x, both.y = x, y  # type: ignore[attr-defined]
    assert [t is y for t in tensors_by_place(both)] == [False, True]


@pytest.mark.parametrize("kind", [None, "values", "distribution"])
def test_impacts_are_measured_where_two_entries_become_one_tensor(kind: str | None) -> None:
    options = {"kind": kind} if kind else {}
    pruner = UniversalLayerPruner(MODEL, calibration=BATCHES, criterion="ablation", granularity="block", **options)
    found = {removal.groups[0]: removal.impact for removal in pruner.removals if removal.kind == "block"}
    assert set(found) == {f"blocks.{i}.up" for i in range(3)}
    for i in range(3):
        if kind == "distribution":
            pairs = [(torch.stack(run(MODEL, x)), torch.stack(without(i, x))) for x in BATCHES]
            logs = [(a.log_softmax(-1), b.log_softmax(-1)) for a, b in pairs]
            expected = torch.stack([(p.exp() * (p - q)).sum(-1).mean() for p, q in logs]).mean()
        else:
            expected = torch.stack([change.square().mean() for change in changes(i)]).mean()
        assert found[f"blocks.{i}.up"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("strategy", ["greedy", "exact"])
def test_sets_are_chosen_and_compared(strategy: str) -> None:
    pruner = UniversalLayerPruner(MODEL, calibration=BATCHES, granularity="block")
    pruned = pruner.prune(max_param_reduction=0.35, strategy=strategy, repair=None)
    gone = [i for i, block in enumerate(pruned.blocks) if isinstance(block, nn.Identity)]
    assert len(gone) == 1
    found = compare(MODEL, pruned, BATCHES)
    x = torch.cat(BATCHES)
    pairs = torch.cat(run(MODEL, x), 1), torch.cat(without(gone[0], x), 1)
    expected = ((pairs[1] - pairs[0]).norm(dim=1) / pairs[0].norm(dim=1)).mean()
    assert found.relative_l2.value == pytest.approx(float(expected), rel=1e-5)


def test_it_is_distilled() -> None:
    pruner = UniversalLayerPruner(MODEL, example_inputs=BATCHES[0], granularity="block")
    pruned = pruner.prune(groups=["blocks.1.up"])
    told = layerprune.distill(MODEL, pruned, BATCHES * 4, num_epochs=2)
    assert told.after < told.before


def test_it_is_exported(tmp_path: Path) -> None:
    pruner = UniversalLayerPruner(MODEL, example_inputs=BATCHES[0], granularity="block")
    file = export_onnx(pruner.prune(groups=["blocks.1.up"]), tmp_path / "pyramid.onnx", BATCHES[0])
    assert file.max_difference < 1e-5


def test_outputs_of_another_length_are_no_fault_of_the_batches() -> None:
    with pytest.raises(CalibrationError, match="returns 1 tensors instead of 2"):
        Divergence("values").between([rows(), rows()], [rows()])
