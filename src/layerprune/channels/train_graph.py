"""Layers that run in train mode only, and lose channels with the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from torch import nn

from layerprune.channels.propagate import ChannelTrace
from layerprune.edits import Slice
from layerprune.graph import Cut, LayerGraph, Refusal, RefusalCode
from layerprune.modules import CallKey

_Place = tuple[CallKey, int]


class TrainGraph:
    """The layer graph of a model in train mode, beside the one in eval mode.

    Auxiliary heads read tensors of the network and run in train mode only: the eval graph does not have them.
    """

    def __init__(self, graph: LayerGraph, training: LayerGraph, modules: Mapping[str, nn.Module]) -> None:
        self.graph = graph
        self.training = training
        self.modules = modules

    @cached_property
    def there(self) -> Mapping[_Place, int]:
        """Place that makes a value of the training graph → the value."""
        return {_place(self.training, value): value for value in self.training.values}

    def slices(self, cut: Cut, dead: Iterable[int], known: Iterable[Slice]) -> list[Slice]:
        """Return the slices of layers that run in train mode only; ``known`` are the slices in eval mode.

        Raises:
            Refusal: a head cannot lose channels, or reads a value that eval mode does not have.
        """
        values = {value for pair in cut.substitutes.items() for value in pair} | {value for _, value in cut.dropped}
        merges = {merge for merge, _ in cut.dropped}
        over = {value: self.value(value) for value in values}
        layers = {
            merge: self.training.values[self.value(self.graph.layers[merge].outputs[0])].layer for merge in merges
        }
        gone = {self.graph.layers[index].key for index in dead}
        trace = ChannelTrace(
            self.training,
            self.modules,
            frozenset(layer.index for layer in self.training.layers if layer.key in gone),
            {over[y]: over[s] for y, s in cut.substitutes.items()},
        )
        found = trace.run((layers[merge], over[value]) for merge, value in cut.dropped)
        seen = {(edit.fqn, edit.side): edit for edit in known}
        here = {edit.fqn: edit for edit in found if edit.fqn in self.graph.calls}
        for edit in here.values():
            if seen.get((edit.fqn, edit.side)) != edit:
                raise Refusal(RefusalCode.LOSES_OTHERS_IN_TRAINING, edit.fqn)
        return [edit for edit in found if edit.fqn not in self.graph.calls]

    def value(self, value: int) -> int:
        """The training graph's value for a value of the eval graph."""
        there = self.there.get(_place(self.graph, value))
        if there is None:
            raise Refusal(RefusalCode.NOT_MADE_IN_TRAINING, value=self.graph.describe([value]))
        return there


def _place(graph: LayerGraph, value: int) -> _Place:
    index = graph.values[value].layer
    key, among = (CallKey(""), graph.inputs) if index < 0 else (graph.layers[index].key, graph.layers[index].outputs)
    return key, among.index(value) if value in among else -1 - value
