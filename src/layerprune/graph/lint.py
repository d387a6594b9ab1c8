"""Consistency of a layer graph: numbers, uses, module calls, parameters and liveness."""

from __future__ import annotations

from collections.abc import Iterator

from layerprune.errors import GraphError
from layerprune.graph.graph_data import GraphData

_SHOWN = 5  # number of faults in the message


def lint(graph: GraphData) -> None:
    """Raise if a layer graph contradicts itself; see :meth:`GraphData.lint`."""
    found = [*_faults_of_numbers(graph)]  # the other checks look up by these numbers
    if not found:
        found = [
            *_faults_of_values(graph),
            *_faults_of_frames(graph),
            *_faults_of_parameters(graph),
            *_faults_of_liveness(graph),
        ]
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise GraphError(f"the layer graph contradicts itself: {'; '.join(found[:_SHOWN])}{more}")


def _faults_of_numbers(graph: GraphData) -> Iterator[str]:
    """Numbers that differ from the places of their owners, or name nothing."""
    for place, layer in enumerate(graph.layers):
        if layer.index != place:
            yield f"layer '{layer.name}' has the number {layer.index} at place {place}"
        if not 0 <= layer.frame < len(graph.frames):
            yield f"layer '{layer.name}' lies in frame {layer.frame}, which does not exist"
        for what, values in (
            ("reads", [v for read in layer.operands for v in read]),
            ("makes", list(layer.outputs)),
            ("returns", [v for v in layer.results if v >= 0]),
        ):
            yield from (
                f"layer '{layer.name}' {what} %{v}, which does not exist" for v in values if v not in graph.values
            )
    for place, frame in enumerate(graph.frames):
        if frame.index != place:
            yield f"frame '{frame.fqn}' has the number {frame.index} at place {place}"
        passed = [value for _, _, value in frame.arguments]
        for value in (*passed, *frame.outputs):
            if value not in graph.values:
                yield f"frame '{frame.fqn}' passes %{value}, which does not exist"
    for index, value in graph.values.items():
        if value.index != index:
            yield f"value %{index} has the number {value.index}"
        if not -1 <= value.layer < len(graph.layers):
            yield f"value %{index} is made by layer {value.layer}, which does not exist"
    for what, values in (
        ("input", graph.inputs),
        ("output", graph.outputs),
        ("implicit input", sorted(graph.implicit_inputs)),
    ):
        yield from (f"the {what} %{value} does not exist" for value in values if value not in graph.values)
    for value, frame in graph.shape_reads:
        if value not in graph.values or not 0 <= frame < len(graph.frames):
            yield f"the shape of %{value} is read in frame {frame}: one of them does not exist"


def _faults_of_values(graph: GraphData) -> Iterator[str]:
    """Values that are read before they are made, or made by another layer than they state."""
    for value in graph.inputs:
        if graph.values[value].layer != -1:
            yield f"the input %{value} is made by layer '{graph.layers[graph.values[value].layer].name}'"
    for layer in graph.layers:
        for value in layer.outputs:
            if graph.values[value].layer != layer.index:
                yield f"layer '{layer.name}' makes %{value}, which says that layer {graph.values[value].layer} does"
        for value in sorted(graph.read_by(layer.index)):
            made = graph.values[value].layer
            if made >= layer.index:
                yield f"layer '{layer.name}' reads %{value}, which '{graph.layers[made].name}' makes later"
            elif made >= 0 and value not in graph.layers[made].outputs:
                yield f"layer '{layer.name}' reads %{value}, which is no output of '{graph.layers[made].name}'"


def _faults_of_frames(graph: GraphData) -> Iterator[str]:
    """Calls that are not nested or counted twice, and layers that lie in another call than they state."""
    seen: set[tuple[str, int]] = set()
    for frame in graph.frames:
        if (frame.parent < 0) != (frame.index == 0) or frame.parent >= frame.index:
            yield f"frame '{frame.fqn}' ({frame.index}) is called in frame {frame.parent}"
        if (frame.fqn, frame.call) in seen:
            yield f"call {frame.call} of '{frame.fqn}' occurs twice"
        seen.add((frame.fqn, frame.call))
    for layer in graph.layers:
        frame = graph.frames[layer.frame]
        if (frame.fqn, frame.call) != (layer.fqn, layer.call):
            yield f"layer '{layer.name}' is of call {layer.call} of '{layer.fqn}', its frame of '{frame.fqn}'"


def _faults_of_parameters(graph: GraphData) -> Iterator[str]:
    if graph.param_ids.keys() != graph.param_sizes.keys():
        yield "param_ids and param_sizes name different parameters"
        return
    for name, number in graph.param_ids.items():
        if graph.size_of_param[number] != graph.param_sizes[name]:
            yield f"the parameter '{name}' has another size than those that it is tied to"
    for layer in graph.layers:
        for name in layer.params:
            if name not in graph.param_ids:
                yield f"layer '{layer.name}' uses the parameter '{name}', which does not exist"


def _faults_of_liveness(graph: GraphData) -> Iterator[str]:
    reached = {graph.values[value].layer for value in graph.outputs}
    for layer in reversed(graph.layers):
        if layer.index in reached:
            reached |= graph.sources(layer.index)
    for index in sorted(graph.live ^ (reached - {-1})):
        word = "" if index in graph.live else "not "
        yield f"layer '{graph.layers[index].name}' is {word}listed as live"
    reads = {(value, index) for index in graph.live for value in graph.read_by(index)}
    listed = {(value, index) for value, layers in graph.readers.items() for index in layers}
    for value, index in sorted(reads ^ listed):
        word = "not " if (value, index) in reads else ""
        yield f"layer '{graph.layers[index].name}' is {word}listed as a reader of %{value}"
