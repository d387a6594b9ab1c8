"""MACs and latency of each layer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import nn

from layerprune.capture import Sandbox, on_batch, real_sandbox
from layerprune.cost.macs import WHOLE, mac_counter
from layerprune.cost.sandbox_forward import on_sandbox
from layerprune.errors import CostError
from layerprune.graph import LayerGraph
from layerprune.inputs import Inputs
from layerprune.modules import CallKey, CallTracker, RunningCall, names_by_module

_ROUNDS = 5  # forwards that are timed


def macs_by_layer(model: nn.Module, graph: LayerGraph, inputs: Inputs) -> Mapping[int, float]:
    """Count the multiply-accumulates of each layer in one forward; see :func:`tally_macs`.

    Layers that compute no product, and operations outside of layers, are left out.

    Raises:
        CostError: the forward raises on these inputs.
    """
    return tally_layers(model, graph, inputs)[0]


def tally_layers(model: nn.Module, graph: LayerGraph, inputs: Inputs) -> tuple[Mapping[int, float], int]:
    """Count as :func:`macs_by_layer`, and count the whole forward, with operations outside of layers."""

    def tally(shade: Sandbox) -> tuple[dict[int, float], int]:
        running = _Running(shade.model, graph)
        counter = mac_counter(lambda: [] if running.layer is None else [str(running.layer)])
        shade.forward(inputs, running.tracker.watching(shade.model), counter)
        sums = {name: sum(found.values()) / 2 for name, found in counter.get_flop_counts().items()}
        return {int(name): macs for name, macs in sums.items() if name.isdigit()}, int(sums.get(WHOLE, 0))

    return on_sandbox(model, inputs, tally)


def time_by_layer(model: nn.Module, graph: LayerGraph, inputs: Inputs) -> Mapping[int, float]:
    """Time each layer in a few forwards on real tensors: layer → milliseconds, the median over the forwards.

    The accelerator is synchronized before and after each layer, so the times are too long. They rank removals by their
    saving; :func:`compare_latency` times whole models.

    Raises:
        CostError: the forward raises on these inputs.
    """
    shade = real_sandbox(model, written=graph.written_params)
    times: dict[int, list[float]] = {}
    for _ in range(_ROUNDS):
        running = _Running(shade.model, graph, clock=_now)
        with on_batch(model, inputs, "the inputs", CostError):
            shade.forward(inputs, running.tracker.watching(shade.model))
        for layer, seconds in running.seconds.items():
            times.setdefault(layer, []).append(seconds * 1e3)
    return {layer: median(found) for layer, found in times.items()}


class _Running:
    """Tracks the running layer of a sandbox's model, and sums up its seconds; without a ``clock`` all times are 0."""

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
