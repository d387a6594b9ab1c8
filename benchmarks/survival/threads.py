"""Threads: several prune one model at once; each must get what one alone gets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from layerprune import UniversalLayerPruner
from models.nets import weight_hash


def run(start: int, count: int) -> dict[str, Any]:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3)]
    model, inputs = nn.Sequential(nn.Linear(16, 16), *layers, nn.Linear(16, 16)).eval(), torch.randn(2, 5, 16)

    def prune(_: int) -> tuple[str, str]:
        pruner = UniversalLayerPruner(model, example_inputs=inputs)
        plan = pruner.plan(max_param_reduction=0.4)
        return plan.to_json(), weight_hash(pruner.prune(plan=plan))

    alone = prune(0)
    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(prune, range(count)))
    failures = [f"thread {number} differs" for number, result in enumerate(results) if result != alone]
    return {"failures": failures, "equal": sum(result == alone for result in results)}
