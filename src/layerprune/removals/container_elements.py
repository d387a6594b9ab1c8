"""Elements of containers that return their arguments in place of their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from layerprune.graph import Cut, Frame, LayerGraph, Refusal, RefusalCode
from layerprune.tensors import traits_of

_Way: TypeAlias = tuple[int | None, str | None]  # position and keyword of an argument
_Place: TypeAlias = tuple[Any, ...]  # path in an output structure


@dataclass(frozen=True)
class Element:
    """One call of an element of a ``Sequential`` or ``ModuleList``, and the cut that takes it out as a whole.

    Attributes:
        frame: the call.
        cut: each result with other readers, replaced by an argument.
    """

    frame: Frame
    cut: Cut


def elements(graph: LayerGraph, modules: Mapping[str, nn.Module]) -> Iterator[Element]:
    """Find elements whose results can all be replaced by arguments.

    Three sources say which argument replaces a result. The first is the next element, which reads the result as that
    argument; the second are sums that lead from the argument to the result; the last are the shapes, in order. An
    element with a result without an argument is left out, because only a part of it would be removed.

    Args:
        graph: the layer graph.
        modules: the model's modules by name; only containers are used.
    """
    frames = [frame for frame in graph.frames[1:] if _is_element(graph, modules, frame)]
    roles = _roles(graph, frames)
    for frame in frames:
        pairs = _pairs(graph, frame, roles[_container(frame)])
        if pairs:
            yield Element(frame, Cut(pairs))


def without_argument(graph: LayerGraph, modules: Mapping[str, nn.Module]) -> dict[str, Refusal]:
    """Find elements with a result that no argument can replace.

    Returns:
        Dotted name of the element → the reason.
    """
    frames = [frame for frame in graph.frames[1:] if _is_element(graph, modules, frame)]
    roles = _roles(graph, frames)
    found: dict[str, Refusal] = {}
    for frame in frames:
        exits = _exits(graph, frame)
        if len(exits) > 1 and not _pairs(graph, frame, roles[_container(frame)]):
            shapes = ", ".join("×".join(map(str, graph.values[value].shape)) for value in exits)
            code = RefusalCode.NO_ARGUMENT_FOR_EACH
            found[frame.fqn] = Refusal(code, frame.fqn, num=len(exits), shapes=shapes)
    return found


def alike(graph: LayerGraph, one: int, other: int) -> bool:
    """Whether two values have the same dtype and the same shape of two dimensions or more."""
    a, b = graph.values[one], graph.values[other]
    return a.shape == b.shape and a.dtype == b.dtype and len(a.shape) > 1


def _is_element(graph: LayerGraph, modules: Mapping[str, nn.Module], frame: Frame) -> bool:
    holds = isinstance(modules.get(_container(frame)), (nn.Sequential, nn.ModuleList))
    return holds and bool(frame.fqn.rpartition(".")[2]) and bool(graph.layers_inside[frame.index])


def _container(frame: Frame) -> str:
    return frame.fqn.rpartition(".")[0]


def _exits(graph: LayerGraph, frame: Frame) -> dict[int, _Place]:
    """Results of a call that are made in it and read outside, with their paths in its output."""
    inside = set(graph.layers_inside[frame.index])
    found: dict[int, _Place] = {}
    for value, place in _places(frame):
        made = graph.values[value].layer
        is_read = value in graph.outputs or any(reader not in inside for reader in graph.readers.get(value, ()))
        if made in inside and made in graph.live and is_read:
            found.setdefault(value, place)
    return found


def _places(frame: Frame) -> Iterator[tuple[int, _Place]]:
    """Values that a call returns, with their paths in its output."""
    listed = [] if frame.result is None or frame.result.is_opaque else list(frame.result.places())
    if listed and all(len(read) == 1 for read, _ in listed):
        yield from ((read[0], place) for read, place in listed)
    else:  # an object of a class of the model's own
        yield from ((value, (number,)) for number, value in enumerate(frame.outputs))


def _roles(graph: LayerGraph, frames: list[Frame]) -> dict[str, dict[_Place, Counter[_Way]]]:
    """For each container and path in its elements' outputs: the arguments by which other elements read this result."""
    found: dict[str, dict[_Place, Counter[_Way]]] = {_container(frame): {} for frame in frames}
    made: dict[int, tuple[str, _Place]] = {}
    for frame in frames:
        container = _container(frame)
        for position, keyword, value in frame.arguments:
            if value in made and made[value][0] == container:
                found[container].setdefault(made[value][1], Counter())[position, keyword] += 1
        made.update({value: (container, place) for value, place in _exits(graph, frame).items()})
    return found


def _pairs(graph: LayerGraph, frame: Frame, roles: Mapping[_Place, Counter[_Way]]) -> dict[int, int]:
    """Each result of a call with the argument that replaces it; empty if a result has none."""
    exits = _exits(graph, frame)
    arguments = {(position, keyword): value for position, keyword, value in frame.arguments}
    found: dict[int, int] = {}
    for value, place in exits.items():
        told = [arguments[way] for way, _ in roles.get(place, Counter()).most_common(1) if way in arguments]
        free = [one for one in arguments.values() if one not in found.values()]
        summed = [one for one in free if one in _summands(graph, frame, value)]
        choices = [*told, *(summed if len(summed) == 1 else ()), *free]
        fitting = [one for one in choices if one != value and one not in exits and alike(graph, one, value)]
        if not fitting:
            return {}
        found[value] = fitting[0]
    return found


def _summands(graph: LayerGraph, frame: Frame, value: int) -> set[int]:
    """The values that a value is a sum of, within its call."""
    inside = set(graph.layers_inside[frame.index])
    found: set[int] = set()
    stack = [value]
    while stack:
        one = stack.pop()
        if one in found:
            continue
        found.add(one)
        layer = graph.layers[graph.values[one].layer] if graph.values[one].layer in inside else None
        if layer is not None and layer.function is not None and traits_of(layer.function).merge == "add":
            stack += [read[0] for read in layer.operands if len(read) == 1]
    return found
