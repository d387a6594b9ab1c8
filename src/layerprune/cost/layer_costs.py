"""MACs and share of latency of each layer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import nn

from layerprune.capture import Sandbox, real_sandbox
from layerprune.cost.macs import WHOLE, mac_counter
from layerprune.cost.sandbox_forward import on_sandbox
from layerprune.errors import CostError, short
from layerprune.graph import LayerGraph
from layerprune.inputs import Inputs
from layerprune.modules import CallKey, CallTracker, RunningCall, names_by_module

_ROUNDS = 5  # forwards that are timed


def macs_by_layer(model: nn.Module, graph: LayerGraph, inputs: Inputs) -> Mapping[int, float]:
    """Count the multiply-accumulates of each layer in one forward; see :func:`tally_macs`.

    Args:
        model: the model that ``graph`` was recorded from; it stays as it is.
        graph: the layer graph.
        inputs: the inputs that it was recorded on.

    Returns:
        Layer → its multiply-accumulates; of layers that compute no product nothing. What runs in no layer is left out.

    Raises:
        CostError: the forward raises on these inputs.
    """
    return tally_layers(model, graph, inputs)[0]


def tally_layers(model: nn.Module, graph: LayerGraph, inputs: Inputs) -> tuple[Mapping[int, float], int]:
    """Count as :func:`macs_by_layer` does, and those of the whole forward, what runs in no layer included."""

    def tally(shade: Sandbox, given: Inputs) -> tuple[dict[int, float], int]:
        running = _Running(shade.model, graph)
        counter = mac_counter(lambda: [] if running.layer is None else [str(running.layer)])
        with shade.running(), running.tracker.watching(shade.model), counter:
            shade.model(*given.args, **given.kwargs)
        sums = {name: sum(found.values()) / 2 for name, found in counter.get_flop_counts().items()}
        return {int(name): macs for name, macs in sums.items() if name.isdigit()}, int(sums.get(WHOLE, 0))

    return on_sandbox(model, inputs, tally)


def time_by_layer(model: nn.Module, graph: LayerGraph, inputs: Inputs) -> Mapping[int, float]:
    """Time each layer in a few forwards on real tensors.

    An accelerator is waited for before and after every layer, so the times are too long, and their sum is; what they
    are good for is to tell which removals save much. The whole model is to be timed without this, see
    :func:`compare_latency`.

    Args:
        model: the model that ``graph`` was recorded from; it stays as it is.
        graph: the layer graph.
        inputs: arguments that the forward takes.

    Returns:
        Layer → milliseconds, the median over the forwards.

    Raises:
        CostError: the forward raises on these inputs.
    """
    shade = real_sandbox(model, written=graph.written_params)
    times: dict[int, list[float]] = {}
    for _ in range(_ROUNDS):
        running = _Running(shade.model, graph, clock=_now)
        given = shade.adapt(inputs)
        try:
            with shade.running(), running.tracker.watching(shade.model):
                shade.model(*given.args, **given.kwargs)
        except Exception as error:  # the user's own forward
            raise CostError(f"the forward raised on the inputs ({inputs!r}): {short(error)}") from error
        for layer, seconds in running.seconds.items():
            times.setdefault(layer, []).append(seconds * 1e3)
    return {layer: median(found) for layer, found in times.items()}


class _Running:
    """Follows which layer of the graph is running, and for how long.

    Args:
        model: a sandbox's model.
        graph: the layer graph.
        clock: gives seconds; None to take no times.

    Attributes:
        layer: the layer that is running; None between layers.
        seconds: layer → the time that it has taken.
    """

    def __init__(self, model: nn.Module, graph: LayerGraph, clock: Callable[[], float] | None = None) -> None:
        self.tracker = CallTracker(names_by_module(model), self.run_module, self.run)
        self.layers = {layer.key: layer.index for layer in graph.layers}
        self.clock = clock or (lambda: 0.0)
        self.layer: int | None = None
        self.seconds: Counter[int] = Counter()

    def run_module(self, call: RunningCall, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return self.run(call.key, forward, args, kwargs)

    def run(self, key: CallKey, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        layer = self.layers.get(key) if self.layer is None else None
        if layer is None:
            return func(*args, **kwargs)
        self.layer, since = layer, self.clock()
        try:
            return func(*args, **kwargs)
        finally:
            self.seconds[layer] += self.clock() - since  # pyright: ignore[reportArgumentType]
            self.layer = None


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
