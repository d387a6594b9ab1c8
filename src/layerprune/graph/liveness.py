"""Liveness: which layers no longer reach an output once a cut changes what layers read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from layerprune.graph.graph_data import GraphData
from layerprune.tables import brief


@dataclass(frozen=True)
class Cut:
    """A change of the values that layers read.

    Attributes:
        substitutes: value → the earlier value that its readers read instead.
        dropped: (merge layer, value) pairs: the merge no longer reads the value.
        projected: values whose substitutes have another form; a projection is folded into the weights of their readers.
    """

    substitutes: Mapping[int, int] = field(default_factory=dict[int, int])
    dropped: frozenset[tuple[int, int]] = frozenset()
    projected: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        what = [f"%{value} by %{by}" for value, by in self.substitutes.items()]
        what += [f"%{value} dropped in layer {merge}" for merge, value in sorted(self.dropped)]
        return brief(self, ", ".join(what))


class DeadLayers:
    """Counts live readers downwards from a cut; see :meth:`GraphData.dead`. Stops at a dead layer in ``until``."""

    def __init__(self, graph: GraphData, cut: Cut, until: Collection[int] = ()) -> None:
        self.graph = graph
        self.cut = cut
        self.until = until
        self.counts: dict[int, int] = {}
        self.dead: set[int] = set()
        self.outputs = frozenset(self.resolve(value) for value in graph.outputs)
        self.pending: list[int] = []

    def resolve(self, value: int) -> int:
        while value in self.cut.substitutes:
            value = self.cut.substitutes[value]
        return value

    def reads(self, layer: int) -> set[int]:
        """The values that a layer reads once the cut is made."""
        original = self.graph.read_by(layer)
        dropped = self.cut.dropped
        return {self.resolve(v) for v in original if not dropped or (layer, v) not in dropped}

    def count(self, value: int) -> int:
        if value not in self.counts:
            self.counts[value] = len(self.graph.readers.get(value, ()))
        return self.counts[value]

    def find(self) -> frozenset[int]:
        changed = {r for y in self.cut.substitutes for r in self.graph.readers.get(y, ())} | {
            m for m, _ in self.cut.dropped
        }
        for layer in changed:
            before, after = self.graph.read_by(layer), self.reads(layer)
            for value in after - before:
                self.counts[value] = self.count(value) + 1
            for value in before - after:
                self.counts[value] = self.count(value) - 1
        self.pending = [v for v in [*self.cut.substitutes, *(v for _, v in self.cut.dropped)] if self.count(v) <= 0]
        while self.pending:
            self.retire(self.graph.values[self.pending.pop()].layer)
        return frozenset(self.dead)

    def retire(self, layer: int) -> None:
        if layer < 0 or layer in self.dead or layer not in self.graph.live:
            return
        outputs = self.graph.layers[layer].outputs
        if any(value in self.outputs or self.count(value) > 0 for value in outputs):
            return
        self.dead.add(layer)
        if layer in self.until:
            self.pending.clear()
            return
        for value in self.reads(layer):
            self.counts[value] = self.count(value) - 1
            if self.counts[value] <= 0:
                self.pending.append(value)
