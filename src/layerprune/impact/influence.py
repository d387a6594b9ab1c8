"""Influence: how far a removal moves the tensor that it replaces."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from layerprune.graph import LayerGraph
from layerprune.inputs import Inputs
from layerprune.observe import observe
from layerprune.proof import Removal
from layerprune.shadow import Shadow


def score_influence(
    shade: Shadow, graph: LayerGraph, removals: Sequence[Removal], inputs: Inputs
) -> tuple[list[float], list[str]]:
    """Measure how far each removal moves the tensor it replaces, in one forward for all of them.

    For a substitute ``s`` of ``y`` this is ``‖y - s‖ / ‖y‖``; for an operand ``b`` that a concat ``c`` loses,
    ``‖b‖ / ‖c‖``. Several replaced tensors are taken as one. Block Influence (arXiv 2403.03853, section 3.2) is the
    same idea with 1 - cosine, which does not see a branch that only rescales.

    Args:
        shade: a real shadow of the model.
        graph: the model's layer graph.
        removals: what to score; order is kept.
        inputs: arguments that the model's forward takes; running sums only are kept, and what a later tensor is
            compared with.

    Returns:
        One score per removal, 0 for none and unbounded above; ``nan`` where a tensor could not be observed or is not
        finite. And what the user should know about the numbers.
    """
    pairs = [_pairs(graph, removal) for removal in removals]
    meter = _Meter(graph, {pair for some in pairs for pair in some})
    observe(shade, graph, inputs, meter.wanted, meter.see)
    scores = [_relative([meter.norms.get(pair, (math.nan, math.nan)) for pair in some]) for some in pairs]
    unknown = sum(math.isnan(score) for score in scores)
    notes = [f"the impact of {unknown} removals could not be measured (a tensor in question is hidden or not finite)"]
    return scores, notes if unknown else []


def _pairs(graph: LayerGraph, removal: Removal) -> list[tuple[int, int, bool]]:
    """(tensor that changes, tensor to compare it with, whether that one is left out rather than put in)."""
    found = [(y, s, False) for y, s in removal.cut.substitutes.items()]
    return found + [(graph.layers[merge].outputs[0], value, True) for merge, value in removal.cut.dropped]


def _relative(norms: Sequence[tuple[float, float]]) -> float:
    change, size = sum(c for c, _ in norms), sum(s for _, s in norms)
    if math.isnan(change) or math.isinf(change) or math.isinf(size):
        return math.nan
    return math.sqrt(change / size) if size > 0 else (0.0 if change == 0 else math.inf)


class _Meter:
    """Keeps each tensor for as long as another one is still to be compared with it."""

    def __init__(self, graph: LayerGraph, pairs: set[tuple[int, int, bool]]) -> None:
        self.graph = graph
        self.norms: dict[tuple[int, int, bool], tuple[float, float]] = {}
        self.by_later: dict[int, list[tuple[int, int, bool]]] = {}
        self.uses: dict[int, int] = {}
        for pair in pairs:
            self.by_later.setdefault(pair[0], []).append(pair)
            self.uses[pair[1]] = self.uses.get(pair[1], 0) + 1
        self.kept: dict[int, Tensor] = {}
        self.wanted = set(self.by_later) | set(self.uses)

    def see(self, value: int, tensor: Tensor) -> None:
        """Compare a tensor with those that it replaces, and keep it for those that replace it."""
        for pair in self.by_later.get(value, ()):
            other = self.kept.get(pair[1])
            if other is not None:
                self.norms[pair] = _compare(tensor, other, left_out=pair[2])
            self.uses[pair[1]] -= 1
            if not self.uses[pair[1]]:
                self.kept.pop(pair[1], None)
        if self.uses.get(value):
            storage = self.graph.values[value].storage
            made = self.graph.values[value].layer
            written = any(storage in layer.writes for layer in self.graph.layers[made + 1 :])
            self.kept[value] = tensor.detach().clone() if written else tensor.detach()


def _compare(y: Tensor, s: Tensor, *, left_out: bool) -> tuple[float, float]:
    """The squared norms of the change and of the tensor before it."""
    dtype = torch.float32 if y.device.type == "mps" else torch.float64
    size = float(torch.linalg.vector_norm(y, dtype=dtype).square())
    if left_out:
        return float(torch.linalg.vector_norm(s, dtype=dtype).square()), size
    if y.shape != s.shape:
        return math.nan, math.nan
    return float(torch.linalg.vector_norm(y - s, dtype=dtype).square()), size
