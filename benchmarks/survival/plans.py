"""Mutated plans: read, and carried out where they can be read; only errors of the library's own may come of it."""

from __future__ import annotations

import random
from typing import Any

from oracle import fuzz_plan


def run(start: int, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"failures": [], "refused": 0, "carried out": 0}
    for number in range(start, start + count):
        rng = random.Random(number)
        text, model = rng.choice(fuzz_plan.bases())
        try:
            found[fuzz_plan.check_plan(fuzz_plan.mutated(text, rng), model)] += 1
        except Exception as error:
            found["failures"].append(f"plan {number}: {type(error).__name__}: {str(error)[:200]}")
    return found
