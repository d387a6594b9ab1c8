"""Where values of the layer graph appear in a run of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from layerprune.graph.layer_graph import LayerGraph
from layerprune.modules import CallKey


@dataclass(frozen=True, kw_only=True)
class ValueLocations:
    """Places where values appear in a run, and the calls that must equal the recording for that.

    Values have the numbers that :meth:`of` was given for them.

    Attributes:
        inputs: place among the tensors of the model's arguments → value.
        arguments: call → (position, keyword, value) of its arguments.
        results: call → (place, value) of its results; of functions, too.
        steps: call → the calls that its forward must make, in order.
        counts: module → number of calls, if it is called at all.
        callees: modules called by modules with watched steps.
        shapes: value → its recorded shape.
    """

    inputs: dict[int, int] = field(default_factory=dict[int, int])
    arguments: dict[CallKey, list[tuple[int | None, str | None, int]]] = field(default_factory=dict[CallKey, Any])
    results: dict[CallKey, list[tuple[int, int]]] = field(default_factory=dict[CallKey, Any])
    steps: dict[CallKey, tuple[str, ...]] = field(default_factory=dict[CallKey, Any])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    callees: set[str] = field(default_factory=set[str])
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict[int, Any])

    @classmethod
    def of(cls, graph: LayerGraph, calls: Sequence[CallKey], wanted: Mapping[int, int]) -> ValueLocations:
        """Find the places of values of a layer graph; ``wanted`` maps these to the numbers to report them by."""
        found = cls()
        taken = [(frame, argument) for frame in graph.frames for argument in frame.arguments if argument[2] in wanted]
        for frame, (position, keyword, value) in taken:
            found.arguments.setdefault(calls[frame.index], []).append((position, keyword, wanted[value]))
        direct = {argument[2] for frame, argument in taken if frame.parent < 0}
        for value, number in wanted.items():
            found.shapes[number] = graph.values[value].shape
            if value in graph.inputs and value not in direct:
                found.inputs[graph.inputs.index(value)] = number
            for frame in graph.results_of.get(value, ()):
                place = graph.frames[frame].outputs.index(value)
                found.results.setdefault(calls[frame], []).append((place, number))
            layer = graph.layers[graph.values[value].layer] if graph.values[value].layer >= 0 else None
            if layer is not None and layer.function is not None:
                call = calls[layer.frame]
                found.steps[call] = graph.frames[layer.frame].steps
                if layer.nth >= 0 and value in layer.results:
                    key = call._replace(function=layer.function, nth=layer.nth)
                    found.results.setdefault(key, []).append((layer.results.index(value), number))
        watched = {frame.index for frame in graph.frames if calls[frame.index] in found.steps}
        found.callees.update(calls[frame.index].fqn for frame in graph.frames if frame.parent in watched)
        totals = Counter(call.fqn for call in calls)
        found.counts.update((key.fqn, totals[key.fqn]) for key in (*found.arguments, *found.results, *found.steps))
        return found


def calls_of(graph: LayerGraph, model: nn.Module, names: Mapping[int, Sequence[str]]) -> list[CallKey]:
    """Each frame's call: the first name of its module, and the number of the call, under any name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    counts: Counter[str] = Counter()
    found: list[CallKey] = []
    for frame in graph.frames:
        name = names[id(modules[frame.fqn])][0]
        found.append(CallKey(name, counts[name]))
        counts[name] += 1
    return found
