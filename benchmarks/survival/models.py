"""Small pruned models to save, and to tell apart."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from layerprune import UniversalLayerPruner

WIDTH = 512  # about 1 MB a layer


def unpruned(width: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(5)))


@cache
def pruned(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = unpruned(width)
    return UniversalLayerPruner(model, example_inputs=torch.randn(2, width)).prune(groups=[str(1 + seed)])


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
