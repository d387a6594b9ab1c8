"""Observation: read chosen values of the layer graph while the model runs on real inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from layerprune.graph import LayerGraph
from layerprune.inputs import Inputs
from layerprune.modules import names_by_module
from layerprune.nested import tensors_in
from layerprune.shadow import Shadow
from layerprune.watch import FunctionWatch, watched

#: Where a value shows up: ("input", place among the inputs), ("call", call, place among its outputs), or
#: ("function", call, function, which call of it, place among its results); a call is (name of the module, which call).
_Place = tuple[Any, ...]
_Call = tuple[str, int]


def observe(
    shade: Shadow,
    graph: LayerGraph,
    inputs: Inputs,
    values: Iterable[int],
    see: Callable[[int, Tensor], None],
    *,
    use: Callable[[Any], None] | None = None,
    forward: Callable[[nn.Module], Any] | None = None,
) -> frozenset[int]:
    """Run a model once and hand chosen values over as they come to be.

    Args:
        shade: a real shadow of the model that ``graph`` was recorded from.
        graph: the layer graph.
        inputs: arguments that the model's forward takes.
        values: numbers of the values to see.
        see: called with each value's number and tensor, in order of execution. The tensor must be copied by who keeps
            it, where later layers write into it.
        use: gets the output; with it the forward runs with gradients, and they are there for it to ask for.
        forward: calls the model once, in place of ``model(*args, **kwargs)``.

    Returns:
        The values that were seen; one that arises within a fused operation is not.
    """
    watcher = _Watcher(shade.model, graph, set(values), see)
    adapted = shade.adapt(inputs)
    with shade.running(grad=use is not None):
        out = watcher.run(adapted, forward)
        if use is not None:
            use(out)
    return frozenset(watcher.seen)


class _Watcher:
    def __init__(
        self, model: nn.Module, graph: LayerGraph, wanted: set[int], see: Callable[[int, Tensor], None]
    ) -> None:
        self.model = model
        self.see = see
        self.names = names_by_module(model)
        self.stack: list[_Call] = []
        self.num_calls: dict[str, int] = {}
        self.counts: dict[tuple[_Call, str], int] = {}
        self.inside = False
        self.seen: set[int] = set()
        calls = _calls(graph, model, self.names)
        self.places = {place: value for value in sorted(wanted) for place in _places(graph, calls, value)}

    def run(self, inputs: Inputs, forward: Callable[[nn.Module], Any] | None) -> Any:
        for place, tensor in enumerate(tensors_in((inputs.args, inputs.kwargs))):
            self.notice(("input", place), tensor)
        with watched(self.model, self.wrap), FunctionWatch(self.call_function):
            return self.model(*inputs.args, **inputs.kwargs) if forward is None else forward(self.model)

    def notice(self, place: _Place, tensor: Any) -> None:
        value = self.places.get(place)
        if value is not None and value not in self.seen and isinstance(tensor, Tensor):
            self.seen.add(value)
            self.see(value, tensor)

    def wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        name = self.names[id(module)][0]

        @functools.wraps(forward)
        def observed(*args: Any, **kwargs: Any) -> Any:
            # Not by its place among all calls: a mixture of experts calls others on other inputs.
            call = name, self.num_calls.get(name, 0)
            self.num_calls[name] = call[1] + 1
            self.stack.append(call)
            try:
                out = forward(*args, **kwargs)
            finally:
                self.stack.pop()
            for place, tensor in enumerate(_outputs(out)):
                self.notice(("call", call, place), tensor)
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


def _calls(graph: LayerGraph, model: nn.Module, names: Mapping[int, Sequence[str]]) -> list[_Call]:
    """Each frame's call: the first name of its module, and which call of the module it is, under whatever name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    counts: dict[str, int] = {}
    found: list[_Call] = []
    for frame in graph.frames:
        name = names[id(modules[frame.fqn])][0]
        found.append((name, counts.get(name, 0)))
        counts[name] = counts.get(name, 0) + 1
    return found


def _places(graph: LayerGraph, calls: Sequence[_Call], value: int) -> list[_Place]:
    """Where a value shows up."""
    found: list[_Place] = []
    if value in graph.inputs:
        found.append(("input", graph.inputs.index(value)))
    for frame in graph.results_of.get(value, ()):
        found.append(("call", calls[frame], graph.frames[frame].outputs.index(value)))
    layer = graph.layers[graph.values[value].layer] if graph.values[value].layer >= 0 else None
    if layer is not None and layer.function is not None and layer.nth >= 0 and value in layer.outputs:
        found.append(("function", calls[layer.frame], layer.function, layer.nth, layer.outputs.index(value)))
    return found
