"""Random graphs: pruned, and held against a simulation that shares no code with surgery (``tests/oracle.py``)."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

from layerprune.errors import CriticalGroupError
from oracle.checks import Oracle
from oracle.random_nets import THEMES, nets

_MOST = 3  # removals of one graph that are checked alone, beside two plans


def run(start: int, count: int) -> dict[str, Any]:
    """Check graphs, as many of each theme; which ones follows from ``start``, so pieces of a run differ.

    Hypothesis begins each theme with its simplest net: of a piece of 400 graphs, 8 are those of every other piece.
    """
    found: dict[str, Any] = {"failures": [], "graphs": 0, "removals": 0, "plans": 0}
    for place, theme in enumerate(THEMES):
        share = count // len(THEMES) + (place < count % len(THEMES))
        if share:
            _run_theme(theme, start, share, found)
    return found


def _run_theme(theme: str, start: int, count: int, found: dict[str, Any]) -> None:
    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(nets(theme), st.integers(0, 2**16))
    def check(net: nn.Module, number: int) -> None:
        try:
            _check(net, number, found)
        except Exception as error:  # counted, and the next graph follows
            found["failures"].append(f"{theme}, seed {start}, {number}: {type(error).__name__}: {str(error)[:300]}")
        found["graphs"] += 1

    check()


def _check(net: nn.Module, number: int, found: dict[str, Any]) -> None:
    rng = random.Random(number)
    torch.manual_seed(number)
    shape = (3, 8, 8) if net.image else (5, 3)
    example, fresh = (torch.randn(size, *shape, dtype=torch.float64) for size in (2, 3))
    oracle = Oracle(net, ((example,), {}), ((fresh,), {}))
    for removal in rng.sample(oracle.pruner.removals, min(len(oracle.pruner.removals), _MOST)):
        oracle.check_removal(removal)
        found["removals"] += 1
    plans = [oracle.pruner.plan(max_param_reduction=rng.choice([0.1, 0.25, 0.4, 0.6, 0.9]))]
    safe = [group.name for group in oracle.pruner.groups if group.can_remove and not group.needs_calibration]
    with suppress(CriticalGroupError):  # they may exclude each other
        plans.append(oracle.pruner.plan(groups=rng.sample(safe, min(len(safe), 2))))
    for plan in plans:
        oracle.check_plan(plan)
        found["plans"] += 1
