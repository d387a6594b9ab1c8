"""Parameters and layers that removals save, whole or in part, alone or together; exact for sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from layerprune.channels import channel_loss_of, price_of, reader_for
from layerprune.edits import Fold, Ranges, Slice, folds_of, is_under, taken_out
from layerprune.graph import LayerGraph
from layerprune.removals import Lowering


@dataclass(frozen=True)
class Savings:
    """The parameters, or the cost of layers, that a removal saves.

    Attributes:
        whole: numbers of the parameters or layers that are removed.
        parts: for sliced ones (size of a channel, half-open ranges of channels).
        growth: growth of those that a projection is folded into; negative for a decrease.
    """

    whole: frozenset[int]
    parts: Mapping[int, tuple[float, Ranges]] = field(default_factory=dict[int, "tuple[float, Ranges]"])
    growth: Mapping[int, float] = field(default_factory=dict[int, float])

    def size(self, graph: LayerGraph) -> int:
        return int(self.amount(graph.size_of_param))

    def amount(self, sizes: Mapping[int, float]) -> float:
        """Sum of the saving; ``sizes`` are the sizes of parameters or layers."""
        pieces = sum(each * (b - a) for each, ranges in self.parts.values() for a, b in ranges)
        return sum(sizes[number] for number in self.whole) + pieces - sum(self.growth.values())


def params_gone(graph: LayerGraph, lowering: Lowering) -> frozenset[int]:
    """Parameters that are removed whole.

    Parameters that the recorded forward never used (an unused bias, an auxiliary weight) leave with the last module
    that holds them.
    """
    removed = graph.all_names(taken_out(lowering.edits))
    if not removed:
        return lowering.params
    held = {number for name, number in graph.param_ids.items() if not is_under(name, removed)}
    unused = (n for n in graph.param_ids.values() if n not in graph.param_users and n not in held)
    return lowering.params | frozenset(unused)


def params_taken(graph: LayerGraph, modules: Mapping[str, nn.Module], lowering: Lowering) -> Savings:
    """The parameters that a lowering saves; tied parameters count once."""
    whole = params_gone(graph, lowering)
    parts = {
        graph.param_ids[f"{edit.fqn}.{name}"]: price
        for edit in lowering.edits
        if isinstance(edit, Slice)
        for name, price in price_of(modules[edit.fqn], edit).items()
        if graph.param_ids[f"{edit.fqn}.{name}"] not in whole
    }
    folds: list[Fold] = folds_of(lowering.edits)
    readers = [reader_for(modules[edit.owner], edit) for edit in folds]
    grown: dict[int, float] = {
        graph.param_ids[edit.weight_fqn]: reader.growth(edit.num_in)
        for edit, reader in zip(folds, readers, strict=True)
    }
    return Savings(whole, parts, grown)


def layers_taken(
    graph: LayerGraph, modules: Mapping[str, nn.Module], lowering: Lowering, costs: Mapping[int, float]
) -> Savings:
    """The cost of layers that a lowering saves: whole for dead layers, by channel for sliced ones."""
    parts: dict[int, tuple[float, Ranges]] = {}
    for edit in lowering.edits:
        if isinstance(edit, Slice):
            module = modules[edit.fqn]
            counts = channel_loss_of(module, edit).counts
            width = int(getattr(module, next(iter(counts)))) if counts else 0
            for frame in graph.calls.get(edit.fqn, ()):
                for layer in graph.layers_inside[frame]:
                    if layer in costs and layer not in lowering.dead and width:
                        parts[layer] = costs[layer] / width, edit.dropped
    grown = {
        layer: costs[layer] * reader.growth(edit.num_in) / reader.tensor.numel()
        for edit in folds_of(lowering.edits)
        for reader in [reader_for(modules[edit.owner], edit)]
        for layer in graph.param_users[graph.param_ids[edit.weight_fqn]]
        if layer in costs and layer not in lowering.dead
    }
    return Savings(frozenset(lowering.dead & costs.keys()), parts, grown)


def bundles(sizes: Mapping[int, float], some: Iterable[Savings]) -> dict[tuple[int, ...], float]:
    """Split savings of removals into pieces that are saved together.

    Returns:
        Removals (places in ``some``, ascending) → size saved by each of them and by no other.
    """
    takers: dict[int, list[int]] = {}
    cuts: dict[int, list[tuple[int, float, Ranges]]] = {}
    grown: dict[int, list[tuple[int, float]]] = {}
    for place, taken in enumerate(some):
        for number in taken.whole:
            takers.setdefault(number, []).append(place)
        for number, (each, ranges) in taken.parts.items():
            cuts.setdefault(number, []).append((place, each, ranges))
        for number, more in taken.growth.items():
            grown.setdefault(number, []).append((place, more))
    found: dict[tuple[int, ...], float] = {}
    for number in {*takers, *cuts, *grown}:
        rest = sizes[number]
        whole = takers.get(number, [])
        for place, more in grown.get(number, ()):  # a removal of the whole also reverts the growth
            key = tuple(sorted({*whole, place}))
            found[key] = found.get(key, 0) - more
            rest += more
        edges = sorted({edge for _, _, ranges in cuts.get(number, ()) for pair in ranges for edge in pair})
        for start, end in pairwise(edges):
            slicing = [place for place, _, ranges in cuts[number] if any(a <= start and end <= b for a, b in ranges)]
            size = cuts[number][0][1] * (end - start)
            if slicing:
                rest -= size
                key = tuple(sorted({*whole, *slicing}))
                found[key] = found.get(key, 0) + size
        if whole and rest > 0:
            found[tuple(whole)] = found.get(tuple(whole), 0) + rest
    return found
