"""Records forwards on real data that differ from the layer graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from layerprune.capture.capture import record_on
from layerprune.capture.sandbox import Sandbox
from layerprune.graph import LayerGraph, counterparts
from layerprune.inputs import Inputs

MOST = 3  #: are remembered: of each that a run does not follow, finding that out may take as long as a forward
_FEW = 2  # samples: of a single one forwards now and then do something else


@dataclass(frozen=True, eq=False)
class Variant:
    """One recording of a real forward.

    Attributes:
        first: the layer graph that it is another run of.
        graph: what the run did.
        numbers: value of ``first`` → its number in ``graph``; what has no certain counterpart is left out.
        is_of_few: whether only some of the samples ran; where each has steps of its own, all of them tell more.
    """

    first: LayerGraph
    graph: LayerGraph
    numbers: Mapping[int, int]
    is_of_few: bool


class Variants:
    """Remembers the variants that runs have followed, for those who observe the same model later.

    Nothing is taken on trust: whoever follows a variant holds each run against it, step by step. It holds neither
    tensors nor a model.
    """

    def __init__(self) -> None:
        self._known: list[Variant] = []
        self._few_do = True

    def of(self, graph: LayerGraph) -> tuple[Variant, ...]:
        """Those of a layer graph, the latest first."""
        return tuple(variant for variant in self._known if variant.first is graph)

    def keep(self, variant: Variant) -> None:
        """Remember a variant, as a run has followed it."""
        self._known = [variant, *self._known][:MOST]

    def recorded(self, graph: LayerGraph, shade: Sandbox, inputs: Inputs) -> Iterator[Variant]:
        """Record a run, first with few samples, which is mostly as good and far cheaper, and then as it is.

        Nothing comes of what cannot be recorded.

        Args:
            graph: the layer graph that the run does not follow.
            shade: a real shadow of the model.
            inputs: of the run.
        """
        few = inputs.samples(0, _FEW) if self._few_do and (inputs.batch_size or 0) > _FEW else None
        if few is not None:
            yield from _recorded(graph, shade, few, is_of_few=True)
            self._few_do = False  # or we would not be asked for another one
        yield from _recorded(graph, shade, inputs, is_of_few=False)


def _recorded(graph: LayerGraph, shade: Sandbox, inputs: Inputs, *, is_of_few: bool) -> Iterator[Variant]:
    try:
        found = record_on(shade, inputs)
    except Exception:  # it ran unrecorded; what cannot be recorded is not seen
        return
    yield Variant(graph, found, counterparts(graph, found, graph.values), is_of_few)
