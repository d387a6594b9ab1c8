"""What a removal saves: the parameters that it takes, whole or in part, exact for sets as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from layerprune.edits import Slice, taken_out
from layerprune.graph import LayerGraph
from layerprune.realise import Realisation
from layerprune.slices import price_of


@dataclass(frozen=True)
class Taken:
    """The parameters that a removal takes.

    Attributes:
        whole: numbers of the parameters that go.
        parts: parameter → (elements per channel, half-open ranges of channels) for those that lose channels.
    """

    whole: frozenset[int]
    parts: Mapping[int, tuple[int, tuple[tuple[int, int], ...]]] = field(
        default_factory=dict[int, "tuple[int, tuple[tuple[int, int], ...]]"]
    )

    def size(self, graph: LayerGraph) -> int:
        """Count the elements."""
        pieces = sum(each * (b - a) for each, ranges in self.parts.values() for a, b in ranges)
        return sum(graph.size_of_param[param] for param in self.whole) + pieces


def params_taken(graph: LayerGraph, modules: Mapping[str, nn.Module], realisation: Realisation) -> Taken:
    """Tell what a realisation removes; tied parameters are one.

    Parameters of removed modules that the recorded forward never used (an unused bias, an auxiliary weight) go too.
    """
    whole = set(realisation.params)
    removed = tuple(name + "." for name in taken_out(realisation.edits))
    if removed:
        unused = ((name, n) for name, n in graph.param_ids.items() if n not in graph.param_users)
        whole |= {number for name, number in unused if name.startswith(removed)}
    parts = {
        graph.param_ids[f"{edit.fqn}.{name}"]: price
        for edit in realisation.edits
        if isinstance(edit, Slice)
        for name, price in price_of(modules[edit.fqn], edit).items()
        if graph.param_ids[f"{edit.fqn}.{name}"] not in whole
    }
    return Taken(frozenset(whole), parts)


def bundles(graph: LayerGraph, some: Iterable[Taken]) -> dict[tuple[int, ...], int]:
    """Split what removals take into pieces that are taken together.

    Returns:
        For each set of removals (by place, ascending) the number of elements that each of them takes and no other does.
    """
    takers: dict[int, list[int]] = {}
    cuts: dict[int, list[tuple[int, int, tuple[tuple[int, int], ...]]]] = {}
    for place, taken in enumerate(some):
        for param in taken.whole:
            takers.setdefault(param, []).append(place)
        for param, (each, ranges) in taken.parts.items():
            cuts.setdefault(param, []).append((place, each, ranges))
    found: dict[tuple[int, ...], int] = {}
    for param in {*takers, *cuts}:
        rest = graph.size_of_param[param]
        whole = takers.get(param, [])
        edges = sorted({edge for _, _, ranges in cuts.get(param, ()) for pair in ranges for edge in pair})
        for start, end in pairwise(edges):
            slicing = [place for place, _, ranges in cuts[param] if any(a <= start and end <= b for a, b in ranges)]
            size = cuts[param][0][1] * (end - start)
            if slicing:
                rest -= size
                key = tuple(sorted({*whole, *slicing}))
                found[key] = found.get(key, 0) + size
        if whole and rest:
            found[tuple(whole)] = found.get(tuple(whole), 0) + rest
    return found
