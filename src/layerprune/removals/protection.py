"""Protected groups: named by the user, stem, and head."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from layerprune.errors import UnknownNameError
from layerprune.graph import Group, Layer, LayerGraph, Refusal, RefusalCode
from layerprune.tensors import traits_of


def protected_by_name(graph: LayerGraph, groups: Sequence[Group], patterns: Sequence[str]) -> dict[str, Refusal]:
    """Find the groups that are protected by name.

    Args:
        graph: the layer graph.
        groups: its groups.
        patterns: dotted names (``fnmatch``); matching modules and all below them stay.

    Returns:
        Group name → the reason in the plan.

    Raises:
        UnknownNameError: a pattern matches nothing; the message lists groups.
    """
    found: dict[str, Refusal] = {}
    for pattern in patterns:
        matched = False
        for name in graph.calls:
            matched |= bool(name) and _matches(name, pattern)
        for group in groups:
            if any(_matches(layer.name, pattern) for layer in group.layers):
                matched = True
                found.setdefault(group.name, Refusal(RefusalCode.PROTECTED, group.name, pattern=pattern))
        if not matched:
            some = ", ".join(f"'{g.name}'" for g in groups[:6])
            raise UnknownNameError(f"protect pattern '{pattern}' matches no module of the model; groups are {some}, …")
    return found


def stem_and_head(graph: LayerGraph, groups: Sequence[Group]) -> dict[str, Refusal]:
    """Find the groups that are a stem or a head.

    A stem is the only first transform behind an input of the model. If several branches read the input, such as a first
    residual branch or one time-step embedder per block, each may be removed. An embedding is the stem of its input. A
    head reaches an output through no other transform, sum or product; concats, stacks, splits and reshapes only arrange
    the results of heads.

    Returns:
        Group name → the reason in the plan.
    """
    behind = _behind_transforms(graph)
    alone = [first for value in graph.inputs if (first := _first_readers(graph, value))]
    found: dict[str, Refusal] = {}
    for group in groups:
        if any(call not in behind for call in group.calls) and any(first <= set(group.calls) for first in alone):
            found[group.name] = Refusal(RefusalCode.STEM, group.name)
        elif _feeds_output(graph, group):
            found[group.name] = Refusal(RefusalCode.HEAD, group.name)
    return found


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + ".*")


def _behind_transforms(graph: LayerGraph) -> frozenset[int]:
    found: set[int] = set()
    for layer in graph.layers:
        sources = [s for s in graph.sources(layer.index) if s >= 0 and not graph.layers[s].param_only]
        if any(s in found or graph.layers[s].kind == "transform" for s in sources):
            found.add(layer.index)
    return frozenset(found)


def _first_readers(graph: LayerGraph, value: int) -> frozenset[int]:
    """First transforms and embeddings behind a value."""
    found: set[int] = set()
    seen: set[int] = set()
    stack = [value]
    while stack:
        for reader in graph.readers.get(stack.pop(), ()):
            if reader in seen:
                continue
            seen.add(reader)
            if graph.layers[reader].kind in ("transform", "embedding"):
                found.add(reader)
            else:
                stack += graph.layers[reader].outputs
    return frozenset(found)


def _feeds_output(graph: LayerGraph, group: Group) -> bool:
    """Whether a group reaches an output without a transform, a sum or a product in between."""
    stack = list(group.calls)
    seen: set[int] = set()
    while stack:
        index = stack.pop()
        if index in seen:
            continue
        seen.add(index)
        for value in graph.layers[index].outputs:
            if value in graph.outputs:
                return True
            for reader in graph.readers.get(value, ()):
                layer = graph.layers[reader]
                if layer.kind != "transform" and (layer.kind != "merge" or _joins(layer)):
                    stack.append(reader)
    return False


def _joins(layer: Layer) -> bool:
    """Whether a merge only arranges tensors, as a concat or a stack."""
    names = layer.functions if layer.function is None else (layer.function,)
    return not any(traits_of(name).is_pointwise for name in names)
