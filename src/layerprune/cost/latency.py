"""Times several models in turn, so that other load on the machine slows all of them alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.capture import on_batch, real_sandbox
from layerprune.environment import locked
from layerprune.errors import CostError
from layerprune.inputs import Inputs
from layerprune.modules import buffers, parameters, unwrap
from layerprune.tables import brief

_DRAWS = 2000  # bootstrap samples
_BLOCK_S = 0.05  # minimum duration of a timing: timers and schedulers are coarser than small models


@dataclass(frozen=True)
class Ratio:
    """The ratio of two latencies.

    Attributes:
        value: ratio of the medians.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f}× [{self.low:.3f}, {self.high:.3f}]"

    def __repr__(self) -> str:
        return brief(self, str(self))


@dataclass(frozen=True)
class Latency:
    """The duration of a model's forward.

    Attributes:
        times_ms: milliseconds per forward in each round, the mean over a block of forwards.
        block: number of forwards timed together.
        num_threads: number of CPU threads.
    """

    times_ms: tuple[float, ...]
    block: int
    num_threads: int

    @property
    def median_ms(self) -> float:
        return median(self.times_ms)

    @property
    def min_ms(self) -> float:
        return min(self.times_ms)

    @property
    def iqr_ms(self) -> float:
        """The interquartile range of the rounds."""
        low, high = np.percentile(self.times_ms, [25, 75])
        return float(high - low)

    def ratio_to(self, other: Latency, *, seed: int = 0) -> Ratio:
        """Compare with another model timed in the same rounds.

        Args:
            other: the divisor, from the same :func:`compare_latency`.
            seed: for the bootstrap over rounds, which draws the same rounds of both.

        Raises:
            CostError: the two have different numbers of rounds.
        """
        if len(self.times_ms) != len(other.times_ms):
            raise CostError(
                f"latencies of {len(self.times_ms)} and {len(other.times_ms)} rounds are not from one comparison: "
                "time both models in one call of compare_latency"
            )
        pairs = np.array([self.times_ms, other.times_ms])
        rounds = np.random.default_rng(seed).integers(0, pairs.shape[1], (_DRAWS, pairs.shape[1]))
        ours, theirs = np.median(pairs[:, rounds], axis=2)
        low, high = np.percentile(ours / theirs, [2.5, 97.5])
        return Ratio(self.median_ms / other.median_ms, float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median_ms:.3g} ms (IQR {self.iqr_ms:.2g}, min {self.min_ms:.3g}; {len(self.times_ms)} rounds)"

    def __repr__(self) -> str:
        return brief(self, str(self))


@locked
def compare_latency(
    models: Mapping[str, nn.Module], inputs: Inputs, *, rounds: int = 15, block_s: float = _BLOCK_S
) -> Mapping[str, Latency]:
    """Time a forward of several models on the same inputs, in turn.

    Each round times each model once, in rotating order. Forwards run in eval mode without gradients, on torch's number
    of threads; the timer waits for the accelerator. Copies run that share the parameters, so models, modes, buffers and
    the RNG are kept. Compiled models run without their compiler.

    Args:
        models: models by name, on one device.
        inputs: arguments that each forward takes, on that device.
        rounds: number of rounds, at least two.
        block_s: minimum duration of a timing, in seconds; faster models run several times.

    Returns:
        The latency of each model, in the order given.

    Raises:
        CostError: there is no model, fewer than two rounds, a model is on the meta device, or its forward raises.
    """
    if not models or rounds < 2:
        raise CostError(f"{len(models)} models in {rounds} rounds: it takes one model and two rounds at least")
    for name, model in models.items():
        if any(tensor.is_meta for tensor in chain(parameters(model), buffers(model), inputs.tensors())):
            raise CostError(f"'{name}' cannot be timed on the meta device: load it to the CPU or a GPU first")
    timed = {name: _Timed(name, model, inputs) for name, model in models.items()}
    blocks = {name: one.block(block_s) for name, one in timed.items()}
    times: dict[str, list[float]] = {name: [] for name in timed}
    names = list(timed)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(timed[name].time(blocks[name]))
    threads = torch.get_num_threads()
    return {name: Latency(tuple(times[name]), blocks[name], threads) for name in names}


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _Timed:
    """A model in a sandbox, ready to be timed."""

    def __init__(self, name: str, model: nn.Module, inputs: Inputs) -> None:
        # Not settled as other sandboxes: experts run by their own kernels.
        self.shade = real_sandbox(unwrap(model), settled=False)
        copy = self.shade.model
        given = self.shade.adapt(inputs)
        # A forward may write into a list argument. The time of copying the list is negligible.
        plain = all(isinstance(value, Tensor) for value in (*given.args, *given.kwargs.values()))
        from torch.utils.benchmark import Timer  # imports setuptools, which takes a while

        self.timer = Timer(
            stmt="model(*args, **kwargs)" if plain else "own = fresh(); model(*own.args, **own.kwargs)",
            globals={"model": copy, "args": given.args, "kwargs": given.kwargs, "fresh": lambda: given.map(_same)},
            num_threads=torch.get_num_threads(),
        )
        with on_batch(model, inputs, "the inputs", CostError, who=f"'{name}'", what="the batch"):
            self.shade.forward(inputs)

    def block(self, seconds: float) -> int:
        with self.shade.running(timed=True):
            return math.ceil(seconds / self.timer.blocked_autorange(min_run_time=seconds).median)

    def time(self, block: int) -> float:
        """Time a block of forwards; milliseconds per forward."""
        with self.shade.running(timed=True):
            return self.timer.timeit(block).mean * 1e3
