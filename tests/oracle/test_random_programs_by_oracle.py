"""Random programs against the oracle: operations in orders and companies that nobody wrote down."""

from __future__ import annotations

import random
import warnings
from collections import Counter

import pytest
import torch

from layerprune import PruningPlan, UniversalLayerPruner
from layerprune.errors import ShortfallWarning
from oracle.checks import Oracle, distance, run
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(12, 14), pytest.param(range(14, 80), marks=pytest.mark.reliability)], ids=["few", "many"]
)
def test_rounds_on_a_random_program_are_one_plan_that_does_the_same(seeds: range) -> None:
    """Each round agrees with the simulation on what the round before left; all together replay on the original."""
    kinds: Counter[str] = Counter()
    for seed in seeds:
        original = rounds = program(seed)
        example, fresh = (_images(2),), ((_images(3),), {})
        for share in (0.15, 0.3, 0.4):
            oracle = Oracle(rounds, (example, {}), fresh)
            oracle.check_plan(oracle.pruner.plan(max_param_reduction=share))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ShortfallWarning)
                rounds = UniversalLayerPruner(rounds, example_inputs=example).prune(max_param_reduction=share)
        plan = PruningPlan.from_json(PruningPlan.of(rounds).to_json())
        kinds.update(edit.kind for edit in plan.edits)
        again = plan.apply(original)
        assert distance(run(again, fresh), run(rounds, fresh)) == 0
        state, expected = again.state_dict(), rounds.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert kinds["next_round"] >= len(seeds) // 3
    assert kinds.keys() >= {"drop", "delete"}


def test_every_operation_is_drawn() -> None:
    operations = {step.operation for seed in range(_PARTS * _NUM_PROGRAMS) for step in program(seed).steps}
    assert operations == PLAIN.keys() | WITH_MODULE.keys()
