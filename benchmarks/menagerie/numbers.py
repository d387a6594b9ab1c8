"""What a plan says in numbers: one row of the zoo's tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layerprune import UniversalLayerPruner
from layerprune.cost import bundles, params_taken
from layerprune.graph import LayerGraph, RefusalCode

_MAX_REASONS = 5


def numbers(pruner: UniversalLayerPruner) -> dict[str, Any]:
    """Count layers, groups and safe groups; the share of parameters that can go; and the reasons of the rest.

    Args:
        pruner: one that has not pruned yet: its ``model`` is still the original.
    """
    critical = [group for group in pruner.groups if group.verdict == "critical"]
    return {
        "params": pruner.graph.num_params,
        "layers": len(pruner.graph.layers),
        "groups": len(pruner.groups),
        "safe": len(pruner.groups) - len(critical),
        "removable": removable_share(pruner),
        "notes": list(pruner.notes),
        "reasons": _main_reasons({g.name: g.reason for g in critical}, {g.name: g.num_params for g in critical}),
    }


def removable_share(pruner: UniversalLayerPruner) -> float | None:
    """The share of parameters that some proven removal takes, whole or sliced; embeddings and the head aside."""
    graph = pruner.graph
    aside = _aside(pruner)
    modules = dict(pruner.model.named_modules(remove_duplicate=False))
    taken = [params_taken(graph, modules, removal.lowering) for removal in pruner.removals]
    counted = [
        replace(some, whole=some.whole - aside, parts={p: part for p, part in some.parts.items() if p not in aside})
        for some in taken
    ]
    total = graph.num_params - sum(graph.size_of_param[param] for param in aside)
    return sum(bundles(graph.size_of_param, counted).values()) / total if total else None


def _aside(pruner: UniversalLayerPruner) -> frozenset[int]:
    """The parameters of embeddings and of the head."""
    graph: LayerGraph = pruner.graph
    heads = [i for group in pruner.groups if group.reason_code == "head" for i in group.members]
    embeddings = [layer.index for layer in graph.layers if layer.kind == "embedding"]
    return frozenset(graph.param_ids[name] for i in (*heads, *embeddings) for name in graph.layers[i].params)


def _main_reasons(reasons: Mapping[str, str], sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(reason, groups, parameters), those that hold the most parameters first; the head's aside."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        if reason != RefusalCode.HEAD.value:
            found.setdefault(reason, []).append(name)
    rows = [(reason, len(names), sum(sizes[name] for name in names)) for reason, names in found.items()]
    return sorted(rows, key=lambda row: -row[2])[:_MAX_REASONS]
