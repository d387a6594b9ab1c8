"""Random programs against the oracle: operations in orders and companies that nobody wrote down."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from oracle.checks import Oracle
from oracle.random_programs import PLAIN, SIZE, WITH_MODULE, program

_NUM_PROGRAMS = 24  # in each of the parts
_PARTS = 5

#: Kinds of removals of which each part must yield some that move the output.
_EXPECTED = {"bypass", "branch", "block", "gate"}


def _images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, dtype=torch.float64)


def check(seed: int, num_removals: int = 5) -> Counter[str]:
    """Prune one program in some ways; returns which kinds of removals moved its output, and how often."""
    oracle = Oracle(program(seed), ((_images(2),), {}), ((_images(3),), {}))
    removals = oracle.checkable
    for removal in random.Random(seed).sample(removals, min(len(removals), num_removals)):
        oracle.check_removal(removal)
    for share in (0.15, 0.35, 0.7):
        oracle.check_plan(oracle.pruner.plan(max_param_reduction=share))
    return oracle.moved


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=[pytest.mark.reliability] * (part > 0)) for part in range(_PARTS)]
)
def test_a_random_program_prunes_to_what_the_simulation_computes(part: int) -> None:
    moved: Counter[str] = Counter()
    for seed in range(part * _NUM_PROGRAMS, (part + 1) * _NUM_PROGRAMS):
        moved += check(seed)
    assert moved.keys() >= _EXPECTED


def test_every_operation_is_drawn() -> None:
    operations = {step.operation for seed in range(_PARTS * _NUM_PROGRAMS) for step in program(seed).steps}
    assert operations == PLAIN.keys() | WITH_MODULE.keys()
