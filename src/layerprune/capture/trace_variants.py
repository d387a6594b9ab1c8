"""Records forwards on real data that differ from the layer graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from layerprune.capture.capture import record_on
from layerprune.capture.sandbox import Sandbox
from layerprune.graph import LayerGraph, counterparts
from layerprune.inputs import Inputs

MOST = 3  #: kept at most: each that a run does not follow may cost a forward
_FEW = 2  # samples: with a single one some forwards take another path


@dataclass(frozen=True, eq=False)
class Variant:
    """One recording of a real forward.

    Attributes:
        first: the layer graph of the same model's first recording.
        graph: the layer graph of this recording.
        numbers: value of ``first`` → its number in ``graph``; values without a certain counterpart are left out.
        is_of_few: whether only part of the samples ran; a recording of all may have more values.
    """

    first: LayerGraph
    graph: LayerGraph
    numbers: Mapping[int, int]
    is_of_few: bool


class Variants:
    """Remembers recordings that runs have followed, for later observers of the same model; holds no tensors.

    Each observer compares its runs with a recording step by step, so none is trusted.
    """

    def __init__(self) -> None:
        self._known: list[Variant] = []
        self._few_do = True

    def of(self, graph: LayerGraph) -> tuple[Variant, ...]:
        """The recordings of a layer graph, newest first."""
        return tuple(variant for variant in self._known if variant.first is graph)

    def keep(self, variant: Variant) -> None:
        self._known = [variant, *self._known][:MOST]

    def recorded(self, graph: LayerGraph, shade: Sandbox, inputs: Inputs) -> Iterator[Variant]:
        """Record a run that does not follow ``graph``: with few samples, which is cheap and mostly enough, then all.

        Yields nothing where recording fails.
        """
        few = inputs.samples(0, _FEW) if self._few_do and (inputs.batch_size or 0) > _FEW else None
        if few is not None:
            yield from _recorded(graph, shade, few, is_of_few=True)
            self._few_do = False  # else no second recording would be needed
        yield from _recorded(graph, shade, inputs, is_of_few=False)


def _recorded(graph: LayerGraph, shade: Sandbox, inputs: Inputs, *, is_of_few: bool) -> Iterator[Variant]:
    try:
        found = record_on(shade, inputs)
    except Exception:  # the run itself succeeded; its values are not seen
        return
    yield Variant(graph, found, counterparts(graph, found, graph.values), is_of_few)
