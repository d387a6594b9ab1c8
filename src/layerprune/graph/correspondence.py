"""Matches the values of two recordings of one model whose forwards differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from layerprune.graph.graph_data import Frame, Layer, Read
from layerprune.graph.layer_graph import LayerGraph

_Token: TypeAlias = tuple[Any, ...]
"""A step of a forward: its name, the origins of its operands, and the readers of its results."""

_NAME, _OPERANDS, _ALL = 2, 3, 4  # degrees of similarity: equal names, also equal numbers of operands, all equal


def counterparts(one: LayerGraph, other: LayerGraph, values: Iterable[int]) -> dict[int, int]:
    """Find values of one recording in another one of the same model; values without a certain counterpart are left out.

    Calls of modules are paired from the model downwards; within a pair, the steps of the two forwards (functions and
    modules called) are aligned. A step has a counterpart where every best alignment gives it the same one. Ambiguous
    steps have none, such as a product in place of two products of the same tensor.
    """
    found: dict[int, set[int]] = {}
    for a, b in _pairs(_Steps(one), _Steps(other)):
        found.setdefault(a, set()).add(b)
    certain = {a: next(iter(some)) for a, some in found.items() if len(some) == 1}
    taken: dict[int, int] = {}
    for b in certain.values():
        taken[b] = taken.get(b, 0) + 1
    return {
        value: certain[value]
        for value in dict.fromkeys(values)
        if value in certain
        and taken[certain[value]] == 1
        and len(one.values[value].shape) == len(other.values[certain[value]].shape)
    }


class _Steps:
    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self.children: dict[int, list[Frame]] = {}
        for frame in graph.frames:
            self.children.setdefault(frame.parent, []).append(frame)
        self.functions = {(layer.frame, layer.function, layer.nth): layer for layer in graph.layers}

    def of(self, frame: Frame) -> Iterator[tuple[_Token, Frame | Layer | None]]:
        """A forward's steps, each with its frame or layer; None for a function that makes no tensor."""
        children = iter(self.children.get(frame.index, ()))
        counts: dict[str, int] = {}
        for step in frame.steps:
            if step.startswith(":"):
                call = next(children)
                yield (step, self.readers(frame, call.outputs)), call
            else:
                nth = counts[step] = counts.get(step, -1) + 1
                layer = self.functions.get((frame.index, step, nth))
                yield (step, *(() if layer is None else self.around(frame, layer))), layer

    def around(self, frame: Frame, layer: Layer) -> Iterator[Any]:
        """Origins of a function's operands, readers of its outputs, and its other arguments."""
        for read in layer.operands:
            yield self.origin(frame, read)
        yield self.readers(frame, layer.results)
        yield _plain(layer.literals, is_index=layer.function == "getitem")

    def readers(self, frame: Frame, values: Iterable[int]) -> frozenset[_Token]:
        """Readers of values, as seen from a frame."""
        found: set[_Token] = set()
        for value in values:
            if value in frame.outputs:
                found.add(("returned",))
            for reader in self.graph.readers.get(value, ()):
                layer = self.graph.layers[reader]
                inner = self.inside(layer.frame, frame.index)
                if inner is not None:
                    found.add(("module", inner.fqn))
                elif layer.frame == frame.index:
                    found.add(("function", layer.function))
        return frozenset(found)

    def inside(self, index: int, around: int) -> Frame | None:
        """The call made directly by frame ``around`` in which frame ``index`` lies; None where there is none."""
        while index >= 0 and self.graph.frames[index].parent != around:
            index = self.graph.frames[index].parent
        return self.graph.frames[index] if index >= 0 else None

    def origin(self, frame: Frame, read: Read) -> _Token:
        if not read:
            return ("constant",)
        for position, keyword, value in frame.arguments:
            if value == read[-1]:
                return "argument", keyword if keyword is not None else position
        made = self.graph.values[read[-1]].layer
        if made >= 0 and (layer := self.graph.layers[made]).frame == frame.index:
            return "function", layer.function
        for index in self.graph.results_of.get(read[-1], ()):
            call = self.graph.frames[index]
            if call.parent == frame.index:
                return "module", call.fqn, call.outputs.index(read[-1])
        return ("elsewhere",)


def _plain(value: Any, *, is_index: bool) -> Any:
    """Literals that do not depend on input sizes: whole numbers may, except for single indices."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _plain(item, is_index=is_index)) for key, item in value.items()))
    if isinstance(value, tuple):
        return tuple(_plain(item, is_index=is_index) for item in value)
    return repr(value) if isinstance(value, (float, str, bool)) or (is_index and type(value) is int) else ""


def _pairs(one: _Steps, other: _Steps) -> Iterator[tuple[int, int]]:
    """Pairs of values that are the same input, argument, result of a call or result of a function."""
    pending = [(one.graph.frames[0], other.graph.frames[0])]
    if len(one.graph.inputs) == len(other.graph.inputs):
        yield from zip(one.graph.inputs, other.graph.inputs, strict=True)
    while pending:
        a, b = pending.pop()
        yield from _ends(a, b)
        steps = list(one.of(a)), list(other.of(b))
        for i, j in _aligned([token for token, _ in steps[0]], [token for token, _ in steps[1]]):
            first, second = steps[0][i][1], steps[1][j][1]
            if isinstance(first, Frame) and isinstance(second, Frame):
                pending.append((first, second))
            elif isinstance(first, Layer) and isinstance(second, Layer):
                yield from _same_place(first.results, second.results)


def _ends(a: Frame, b: Frame) -> Iterator[tuple[int, int]]:
    """The arguments and the results of a call in both recordings."""
    names = {key: value for position, keyword, value in b.arguments if (key := (position, keyword))}
    for position, keyword, value in a.arguments:
        if (position, keyword) in names:
            yield value, names[position, keyword]
    yield from _same_place(a.outputs, b.outputs)


def _same_place(a: tuple[int, ...], b: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    if len(a) == len(b):
        yield from ((x, y) for x, y in zip(a, b, strict=True) if x >= 0 and y >= 0)


def _aligned(a: list[_Token], b: list[_Token]) -> list[tuple[int, int]]:
    """Places that are paired in every best alignment of two sequences, by the sum of likeness."""
    if a == b:
        return [(place, place) for place in range(len(a))]
    if not a or not b:
        return []
    likeness = _likeness(a, b)
    before = _best(likeness)
    after = _best(likeness[::-1, ::-1])[::-1, ::-1]
    best = before[-1, -1]
    matches = (likeness > 0) & (before[:-1, :-1] + likeness + after[1:, 1:] == best)
    skippable = (before[:-1, :] + after[1:, :] == best).any(1)
    certain = (matches.sum(1) == 1) & ~skippable
    return [(int(i), int(matches[i].argmax())) for i in certain.nonzero()[0]]


def _likeness(a: list[_Token], b: list[_Token]) -> np.ndarray:
    """Similarity of each step of one sequence to each step of another; 0 where their names differ."""

    def equal(first: list[Any], second: list[Any]) -> np.ndarray:
        numbers: dict[Any, int] = {}
        ids = [np.array([numbers.setdefault(key, len(numbers)) for key in keys]) for keys in (first, second)]
        return ids[0][:, None] == ids[1][None, :]

    name = equal([token[0] for token in a], [token[0] for token in b])
    arity = name & equal([len(token) for token in a], [len(token) for token in b])
    return np.select([equal(a, b), arity, name], [_ALL, _OPERANDS, _NAME], 0)


def _best(likeness: np.ndarray) -> np.ndarray:
    """The largest sum of likeness of the first i and the first j steps, of shape ``(i, j)``."""
    rows, columns = likeness.shape
    best = np.zeros((rows + 1, columns + 1), dtype=np.int64)
    for i in range(rows):
        row = np.maximum(best[i, 1:], best[i, :-1] + likeness[i] * (likeness[i] > 0))
        best[i + 1, 1:] = np.maximum.accumulate(row)
    return best
