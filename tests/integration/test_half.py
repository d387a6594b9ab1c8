"""Models of 16 bits are planned, pruned, repaired and compared as those of 32 are, and keep their dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.errors import CalibrationError
from layerprune.fidelity import compare
from layerprune.repair import repair
from models.families import build
from models.nets import Photograph, conv, linear, randomised, repeats, rows

HALVES = [torch.bfloat16, torch.float16]


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(num_in, num_out, stride=stride, bias=False), nn.BatchNorm2d(num_out)
        self.conv2, self.norm2 = conv(num_out, num_out, bias=False), nn.BatchNorm2d(num_out)
        shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))
        self.down = shortcut if num_in != num_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.down(x)).relu()


def resnet() -> nn.Module:
    stem = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU()]
    blocks = [Block(8, 8), Block(8, 16, 2), Block(16, 16)]
    return randomised(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(16, 10)))


def llama() -> nn.Module:
    return randomised(build("llama", num_hidden_layers=2))


def images(number: int) -> Tensor:
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(number))


def sentences(number: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 40, (8, 12), generator=torch.Generator().manual_seed(number))}


#: name → the model, its batches, and the harm that repair leaves at most of what the removals did.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], float]] = {
    "resnet": (resnet, images, 0.001),
    "llama": (llama, sentences, 0.7),
}


def as_dtype(batch: Any, dtype: torch.dtype) -> Any:
    return batch.to(dtype) if isinstance(batch, Tensor) else batch


@pytest.mark.parametrize("name", ["resnet", *repeats("llama")])
def test_plan_prune_repair_and_comparison_are_those_of_32_bits(name: str) -> None:
    make, batch_of, left = CASES[name]
    found: dict[torch.dtype, tuple[Any, ...]] = {}
    for dtype in (torch.float32, *HALVES):
        model = make().to(dtype)
        before = Photograph(model)
        batches = [as_dtype(batch_of(number), dtype) for number in range(9)]
        pruner = UniversalLayerPruner(model, calibration=batches[:8], criterion="ablation")  # a quarter is held out
        plan = pruner.plan(max_param_reduction=0.35)
        pruned = pruner.prune(plan=plan)
        assert Photograph(model) == before
        assert {tensor.dtype for tensor in pruned.parameters()} == {dtype}
        assert {tensor.dtype for tensor in pruned.buffers() if tensor.is_floating_point()} <= {dtype, torch.float32}
        report = pruner.repair_report
        assert report is not None
        assert report.kept
        assert report.after < left * report.before
        change = compare(model, pruned, batches[8:]).relative_l2
        assert change is not None
        found[dtype] = tuple(r.name for r in plan.removals), {r.name: r.impact for r in pruner.removals}, report, change
    chosen, impacts, report, change = found[torch.float32]
    assert chosen
    for dtype in HALVES:
        others = found[dtype]
        assert others[0] == chosen
        assert others[1] == pytest.approx(impacts, rel=0.05, abs=1e-3)
        assert others[2].before == pytest.approx(report.before, rel=0.05)
        assert others[3].value == pytest.approx(change.value, rel=0.05, abs=0.01)


class Branch(nn.Module):
    """``x`` and ``scale`` times a linear function of it."""

    def __init__(self, width: int, scale: float = 1) -> None:
        super().__init__()
        self.inner, self.scale = linear(width), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(x)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("how", ["refit", "mean"])
def test_what_is_solved_is_the_solution_rounded(how: str, dtype: torch.dtype) -> None:
    """``s + B s + b`` with ``s = W x + c`` is ``(W + B W) x + c + B c + b``; by the mean alone ``c`` moves."""
    model = randomised(nn.Sequential(linear(8), Branch(8), linear(8, 3))).to(dtype)
    batches = [rows(256, seed=seed).to(dtype) for seed in range(8)]
    plan = UniversalLayerPruner(model, example_inputs=batches[0]).plan(groups=["1.inner"])
    pruned = plan.apply(model)
    report = repair(model, pruned, batches, edits=plan.edits, how=how)
    assert report.kept
    assert {tensor.dtype for tensor in pruned.parameters()} == {dtype}
    with torch.no_grad():
        stem, inner, solved = (module.double() for module in (model[0], model[1].inner, pruned.get_submodule("0")))
        gone = inner(stem(torch.cat(batches).double()))
        weight = stem.weight + inner.weight @ stem.weight if how == "refit" else stem.weight
        bias = stem.bias + (inner(stem.bias) if how == "refit" else gone.mean(0))
        assert gone.norm() > 0.3 * stem(torch.cat(batches).double()).norm()
        assert torch.allclose(solved.weight, weight, atol=0.02)
        assert torch.allclose(solved.bias, bias, atol=0.02)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_projection_is_fitted_in_float64_and_folded_in_the_models_dtype(dtype: torch.dtype) -> None:
    """Between linear layers nothing is lost but by rounding: ``C (B x + b) + c`` is ``(C B) x + (C b + c)``."""
    model = randomised(nn.Sequential(linear(8, 6), nn.Tanh(), linear(6, 9), nn.Identity(), linear(9, 3))).to(dtype)
    pruner = UniversalLayerPruner(model, calibration=[rows(256, seed=seed).to(dtype) for seed in range(8)])
    pruned = pruner.prune(groups=["2"], repair=None)
    before, after, folded = (module.float() for module in (model[2], model[4], pruned.get_submodule("4")))
    with torch.no_grad():
        assert torch.allclose(folded.weight, after.weight @ before.weight, atol=0.02)
        assert torch.allclose(folded.bias, after.weight @ before.bias + after.bias, atol=0.02)
    assert pruner.projection_report.fitted[0].left < 1e-4


@pytest.mark.parametrize("criterion", ["ablation", "output_change", "influence", "magnitude"])
def test_numbers_that_16_bits_cannot_sum_are_summed_all_the_same(criterion: str) -> None:
    """4,096 numbers of about 200 have a squared norm of 1.6e8, and float16 ends at 65,504."""

    class Larger(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 200 * x

    layers = [linear(8, 64), Larger(), Branch(64, 0.1), Branch(64, 0.1), linear(64, 40)]
    impacts = []
    for dtype in (torch.float32, torch.float16):
        model = randomised(nn.Sequential(*layers)).to(dtype)
        batches = [rows(64, seed=seed).to(dtype) for seed in range(4)]
        pruner = UniversalLayerPruner(model, calibration=batches, criterion=criterion)
        impacts.append({removal.name: removal.impact for removal in pruner.removals})
    assert all(math.isfinite(impact) for impact in impacts[1].values())
    assert impacts[1] == pytest.approx(impacts[0], rel=0.05)


def test_a_projection_whose_weights_pass_the_range_of_float16_is_refused() -> None:
    # 300 · 300 is beyond 65,504: each of the two layers holds its weights, their product does not.
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3))
    with torch.no_grad():
        for layer, weight in ((model[1], 300.0), (model[2], 300.0), (model[3], 1e-3)):
            nn.init.eye_(layer.weight).mul_(weight)
    model = model.half().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [torch.randn(64, 4).half() * 0.01 for _ in range(4)]
    pruner = UniversalLayerPruner(model, calibration=batches)
    with pytest.raises(CalibrationError, match=r"'2\.weight' cannot take a projection in: .* beyond torch\.float16"):
        pruner.prune(groups=["1"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
