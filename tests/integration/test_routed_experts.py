"""Mixtures of experts written as loops: which rows an expert gets hangs on values, before pruning and after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from models.nets import linear, randomised, run, tokens


class Routed(nn.Module):
    """Each token goes to the better of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = linear(8, 2), nn.ModuleList([linear(), linear()])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        best = self.router(flat).argmax(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            (at,) = torch.where(best == number)
            out[at] += expert(flat[at])
        return out.view(x.shape)


class RoutedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = linear(), linear()
        self.blocks = nn.ModuleList([Routed() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_experts_that_get_other_rows_than_before_are_not_solved_again_and_the_report_says_why() -> None:
    model = randomised(RoutedModel())
    # Both models are recorded on the last batch of the fit, on which the experts of blocks.2 get as many rows in
    # either; that with seed 4 is held out.
    pruner = UniversalLayerPruner(model, calibration=[tokens(8, seed=i) for i in (1, 2, 3, 0, 4)], progress=False)
    pruned = pruner.prune(groups=["blocks.0.experts.0"])
    assert pruner.repair_report is not None
    why = {name: reason for name, reason in pruner.repair_report.refused.items() if "rows" in reason}
    assert why
    assert all(name.startswith("blocks.") for name in why)
    assert run(pruned, tokens(3)).shape == (3, 5, 8)
