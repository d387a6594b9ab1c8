"""Finds the module calls that a set of edits does not reach, and chooses which outputs to keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

from torch import nn

from layerprune.graph import LayerGraph, calls_of
from layerprune.modules import ModelState, names_by_module
from layerprune.torch_internals import GLOBAL_HOOKS, has_hooks

_PER_ELEMENT = 8  # multiply-accumulates that take as long as an elementwise function on one element


class UnchangedCalls:
    """Tells whether a change can reach calls, given as frames of the layer graph; ``model`` is still without edits."""

    def __init__(self, graph: LayerGraph, model: nn.Module) -> None:
        self.graph = graph
        self.inside = graph.layers_inside
        modules = dict(model.named_modules(remove_duplicate=False))
        self.names = names_by_module(model, only_first=True)
        self.calls = {key: frame for frame, key in enumerate(calls_of(graph, model, self.names))}
        self.module_of = {frame.index: modules[frame.fqn] for frame in graph.frames}  # whose call a frame is
        self.modules: dict[int, frozenset[int]] = {}  # frame → modules called in it, with its own module and its parts
        for frame in graph.frames:
            self.modules[frame.index] = frozenset(map(id, self.module_of[frame.index].modules()))
        self.by_id = {id(module): module for module in modules.values()}
        for frame in reversed(graph.frames):
            if frame.parent >= 0:
                self.modules[frame.parent] |= self.modules[frame.index]

    def unreached(self, condition: ModelState) -> frozenset[int]:
        """The calls that edits since the snapshot ``condition`` reach neither by data flow nor in their modules."""
        changed = condition.changed()
        touched, differing = condition.holding(changed), condition.differing(changed)
        seeds = {
            layer
            for frame in self.graph.frames
            if id(self.module_of[frame.index]) in differing
            for layer in self.inside[frame.index]
        }
        reached = self.downstream(seeds)
        return frozenset(
            frame.index
            for frame in self.graph.frames
            if frame.parent >= 0
            and self.inside[frame.index]
            and self.modules[frame.index].isdisjoint(touched | differing)
            and reached.isdisjoint(self.inside[frame.index])
        )

    def downstream(self, layers: Iterable[int]) -> set[int]:
        found, stack = set[int](), list(layers)
        while stack:
            layer = stack.pop()
            if layer not in found:
                found.add(layer)
                stack += [
                    reader for value in self.graph.layers[layer].outputs for reader in self.graph.readers.get(value, ())
                ]
        return found

    def outermost(self, frames: Collection[int]) -> list[int]:
        return [frame for frame in sorted(frames) if not any(outer in frames for outer in self.around(frame))]

    def innermost(self, frames: Collection[int]) -> list[int]:
        holding = {outer for frame in frames for outer in self.around(frame)}
        return [frame for frame in sorted(frames) if frame not in holding]

    def around(self, frame: int) -> Iterable[int]:
        while (frame := self.graph.frames[frame].parent) >= 0:
            yield frame

    def is_hooked(self, frame: int) -> bool:
        """Whether modules called inside have hooks, which have to run; the call's own hooks run in any case."""
        if any(GLOBAL_HOOKS):
            return True
        own = self.module_of[frame]
        inside = (self.by_id.get(one) for one in self.modules[frame] if one != id(own))
        return any(one is not None and has_hooks(one) for one in inside)

    def watched(self, frames: Iterable[int]) -> list[nn.Module]:
        return list({id(module): module for module in map(self.module_of.__getitem__, frames)}.values())

    def chosen(self, wanted: Sequence[frozenset[int]], scale: float, most_bytes: int) -> frozenset[int]:
        """Choose the calls whose outputs are kept: first those that save most work per byte.

        ``wanted`` holds for each set of edits the calls that it does not reach; ``scale`` is the size of the batch, in
        example inputs.
        """
        saved: Counter[int] = Counter()
        for frames in wanted:
            for frame in self.outermost(frames):
                saved[frame] += self.work[frame]
        sizes = {frame: max(scale * self.num_bytes[frame], 1.0) for frame in saved}
        found: set[int] = set()
        total = 0.0
        for frame in sorted(saved, key=lambda frame: (-saved[frame] / sizes[frame], frame)):
            if saved[frame] and total + sizes[frame] <= most_bytes:
                found.add(frame)
                total += sizes[frame]
        return frozenset(found)

    @cached_property
    def work(self) -> Mapping[int, int]:
        """The approximate work of each call, in multiply-accumulates."""
        values, sizes = self.graph.values, self.graph.param_sizes
        found: list[int] = []
        for layer in self.graph.layers:
            num = max((math.prod(values[v].shape) for v in layer.outputs if v in values), default=0)
            last = max((values[v].shape[-1:] or (1,) for v in layer.outputs if v in values), default=(1,))[0]
            widths = [values[v].shape[1] for v in layer.outputs if v in values and len(values[v].shape) == 4]
            places = num // max(widths[0] if widths else last, 1)
            weights = 0 if layer.kind == "embedding" else sum(sizes[name] for name in layer.params)
            found.append(_PER_ELEMENT * num + places * weights)
        return {frame: sum(found[layer] for layer in layers) for frame, layers in self.inside.items()}

    @cached_property
    def num_bytes(self) -> Mapping[int, int]:
        """The bytes to keep for each call: its output, and arguments that no other call has returned."""
        values, results = self.graph.values, self.graph.results_of
        found: dict[int, int] = {}
        for frame in self.graph.frames:
            taken = [value for _, _, value in frame.arguments if not results.get(value)]
            kept = [values[value] for value in dict.fromkeys([*frame.outputs, *taken]) if value in values]
            storages = {value.storage: math.prod(value.shape) * value.dtype.itemsize for value in kept}
            found[frame.index] = sum(storages.values())
        return found
