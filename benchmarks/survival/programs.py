"""Random programs: forwards of operations in orders that nobody wrote down, pruned and held against the simulation."""

from __future__ import annotations

import random
from typing import Any

import torch

from oracle.checks import Oracle
from oracle.random_programs import SIZE, program

_MOST = 3  # removals of one program that are checked alone, beside two plans


def run(start: int, count: int) -> dict[str, Any]:
    """Check the programs of so many seeds, from ``start`` on."""
    found: dict[str, Any] = {"failures": [], "removals": 0, "plans": 0}
    for seed in range(start, start + count):
        try:
            _check(seed, found)
        except Exception as error:  # counted, and the next program follows
            found["failures"].append(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
    return found


def _check(seed: int, found: dict[str, Any]) -> None:
    net, rng = program(seed), random.Random(seed)
    example, fresh = (torch.randn(size, 3, SIZE, SIZE, dtype=torch.float64) for size in (2, 3))
    oracle = Oracle(net, ((example,), {}), ((fresh,), {}))
    for removal in rng.sample(oracle.checkable, min(len(oracle.checkable), _MOST)):
        oracle.check_removal(removal)
        found["removals"] += 1
    for share in (rng.choice([0.1, 0.25]), rng.choice([0.4, 0.6, 0.9])):
        oracle.check_plan(oracle.pruner.plan(max_param_reduction=share))
        found["plans"] += 1
