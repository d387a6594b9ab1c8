"""Observation: read chosen values of the layer graph while the model runs on real inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.graph import LayerGraph
from layerprune.inputs import Inputs
from layerprune.modules import names_by_module
from layerprune.nested import tensors_in
from layerprune.shadow import Shadow
from layerprune.watch import FunctionWatch, watched

#: Where a value shows up: ("call", module, call, place among its outputs), or
#: ("function", module, call, function, nth call of it), or ("input", place among the inputs).
_Place = tuple[Any, ...]


def observe(
    shade: Shadow, graph: LayerGraph, inputs: Inputs, values: Iterable[int], see: Callable[[int, Tensor], None]
) -> frozenset[int]:
    """Run a model once and hand chosen values over as they come to be.

    Args:
        shade: a real shadow of the model that ``graph`` was recorded from.
        graph: the layer graph.
        inputs: arguments that the model's forward takes.
        values: numbers of the values to see.
        see: called with each value's number and tensor, in order of execution. The tensor must be copied by who keeps
            it, where later layers write into it.

    Returns:
        The values that were seen; one that arises within a fused operation is not.
    """
    watcher = _Watcher(shade.model, graph, set(values), see)
    adapted = shade.adapt(inputs)
    with shade.running():
        watcher.run(adapted)
    return frozenset(watcher.seen)


class _Watcher:
    def __init__(
        self, model: nn.Module, graph: LayerGraph, wanted: set[int], see: Callable[[int, Tensor], None]
    ) -> None:
        self.model = model
        self.graph = graph
        self.see = see
        self.names = names_by_module(model)
        self.stack: list[int] = []
        self.num_calls = 0
        self.counts: dict[tuple[int, str], int] = {}
        self.inside = False
        self.seen: set[int] = set()
        self.places = {place: value for value in sorted(wanted) for place in _places(graph, value)}

    def run(self, inputs: Inputs) -> None:
        for place, tensor in enumerate(tensors_in((inputs.args, inputs.kwargs))):
            self.notice(("input", place), tensor)
        with watched(self.model, self.wrap), torch.no_grad(), FunctionWatch(self.call_function):
            self.model(*inputs.args, **inputs.kwargs)

    def notice(self, place: _Place, tensor: Any) -> None:
        value = self.places.get(place)
        if value is not None and value not in self.seen and isinstance(tensor, Tensor):
            self.seen.add(value)
            self.see(value, tensor)

    def wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def observed(*args: Any, **kwargs: Any) -> Any:
            number = self.num_calls
            self.num_calls += 1
            self.stack.append(number)
            try:
                out = forward(*args, **kwargs)
            finally:
                self.stack.pop()
            if number < len(self.graph.frames):
                for place, tensor in enumerate(_outputs(out)):
                    self.notice(("call", number, place), tensor)
            return out

        return observed

    def call_function(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.inside or not self.stack:
            return func(*args, **kwargs)
        frame = self.stack[-1]
        nth = self.counts[(frame, name)] = self.counts.get((frame, name), -1) + 1
        self.inside = True
        try:
            out = func(*args, **kwargs)
        finally:
            self.inside = False
        for place, tensor in enumerate(_outputs(out)):
            self.notice(("function", frame, name, nth, place), tensor)
        return out


def _outputs(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else tensors_in(out)


def _places(graph: LayerGraph, value: int) -> list[_Place]:
    """Where a value shows up. Calls are numbered in order of execution, as frames are."""
    found: list[_Place] = []
    if value in graph.inputs:
        found.append(("input", graph.inputs.index(value)))
    for frame in graph.results_of.get(value, ()):
        found.append(("call", frame, graph.frames[frame].outputs.index(value)))
    layer = graph.layers[graph.values[value].layer] if graph.values[value].layer >= 0 else None
    if layer is not None and layer.function is not None and layer.nth >= 0 and value in layer.outputs:
        found.append(("function", layer.frame, layer.function, layer.nth, layer.outputs.index(value)))
    return found
