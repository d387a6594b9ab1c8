"""What the examples measure of any model: its size, and its latency next to another model's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from torch import nn


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_megabytes(model: nn.Module) -> float:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6


def interleaved_ms(
    first: Callable[[], object], second: Callable[[], object], repeats: int, warm_up: int = 3
) -> tuple[float, float]:
    """Median milliseconds of two calls, timed as A B, B A, A B, …, so that a busy machine slows both alike."""
    samples: tuple[list[float], list[float]] = ([], [])
    contenders = [(first, samples[0]), (second, samples[1])]
    for _ in range(warm_up + repeats):
        for run, times in contenders:
            start = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - start))
        contenders.reverse()
    return statistics.median(samples[0][warm_up:]), statistics.median(samples[1][warm_up:])
