"""Matches hidden states of the pruned model with hidden states of the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from layerprune.capture import Batch, Sandbox, real_sandbox, record_on
from layerprune.edits import Edit
from layerprune.errors import DistillationError
from layerprune.graph import LayerGraph
from layerprune.modules import named_parameters
from layerprune.repair import Site, find_sites, renumbered


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """A sandbox of a model with real weights, and its layer graph, recorded on real data."""

    shade: Sandbox
    graph: LayerGraph


@dataclass(frozen=True)
class Match:
    """A tensor of the pruned model and the tensor of the original that it should equal.

    Attributes:
        names: the transforms of the pruned model that feed the tensor.
        student: its value in the pruned model's layer graph.
        teacher: the value in the original's layer graph.
        weight: share of the loss; all weights sum to 1.
    """

    names: tuple[str, ...]
    student: int
    teacher: int
    weight: float


def hidden_states_of(model: nn.Module, batch: Batch, *, copied: bool) -> HiddenStates:
    """Record a model on a batch; a ``copied`` sandbox has its own parameters, for training."""
    every = [name for name, _ in named_parameters(model, every_name=True)]
    shade = real_sandbox(model, copied=every if copied else ())
    graph = record_on(shade, batch.inputs)
    # Training is a real use of the model: counters and logs that its forwards write outside the model keep their
    # changes.
    return HiddenStates(replace(shade, outside=None) if copied else shade, graph)


def find_matches(
    teacher: HiddenStates, student: HiddenStates, edits: Sequence[Edit], patterns: Mapping[str, float] | None
) -> tuple[Match, ...]:
    """Match the tensors that surviving transforms feed with the tensors that the same readers read in the original.

    ``patterns`` give transforms' names and weights; the first pattern that fits a name counts. Without patterns, the
    matches are outputs of merges in the original (sums of the residual stream), or all tensors where it has no merge.

    Raises:
        DistillationError: patterns fit no name, or layers are renumbered and no edits are given.
    """
    if why := renumbered(teacher.shade.model, student.shade.model, edits):
        raise DistillationError(f"{why}, or hidden_weight=0")
    sites, _ = find_sites(teacher.graph, student.graph, student.shade.model, edits)
    outputs = set(student.graph.outputs)  # these have a loss of their own
    fed: dict[tuple[int, int], list[Site]] = {}
    for site in sites:
        if site.reached not in outputs:
            fed.setdefault((site.reached, site.target), []).append(site)
    if patterns is None:
        merged = {pair: 1.0 for pair in fed if _is_merge(teacher.graph, pair[1])}
        weights = merged or dict.fromkeys(fed, 1.0)
    else:
        weights = {pair: max(_weight(site.name, patterns) for site in some) for pair, some in fed.items()}
        weights = {pair: weight for pair, weight in weights.items() if weight > 0}
        if not weights:
            known = ", ".join(site.name for some in list(fed.values())[:8] for site in some)
            raise DistillationError(f"hidden={dict(patterns)} fits no transform with a match; there are {known}, …")
    total = sum(weights.values())
    return tuple(
        Match(tuple(site.name for site in fed[pair]), *pair, weight / total) for pair, weight in weights.items()
    )


def _is_merge(graph: LayerGraph, value: int) -> bool:
    layer = graph.values[value].layer
    return layer >= 0 and graph.layers[layer].kind == "merge"


def _weight(name: str, patterns: Mapping[str, float]) -> float:
    return next((weight for pattern, weight in patterns.items() if fnmatchcase(name, pattern)), 0.0)
