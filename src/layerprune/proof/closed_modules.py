"""Isolation: which modules' results follow from their arguments alone, and which run otherwise after an edit."""

from __future__ import annotations

from layerprune.graph import LayerGraph
from layerprune.removals import Realisation


def touched(graph: LayerGraph, joint: Realisation) -> list[str]:
    """The modules that run otherwise once a realisation is carried out, under all their names."""
    names = [name for edit in joint.edits for name in (edit.fqn, *edit.targets)] + [
        moved.layer.fqn for moved in joint.moved
    ]
    params = [graph.param_ids[edit.fqn] for edit in joint.edits if edit.kind == "drop_parameter"]
    names += [graph.layers[user].fqn for param in params for user in graph.param_users[param]]
    return [alias for name in names for alias in graph.aliases_of.get(name, ((name,),))[0]]


def closed_modules(graph: LayerGraph) -> frozenset[str]:
    """The modules with others inside that write into nothing that was there before, and read no values."""
    inside = graph.layers_inside
    closed: set[str] = set()
    for fqn, calls in graph.calls.items():
        made = {graph.values[v].storage for f in calls for i in inside[f] for v in graph.layers[i].outputs}
        given = {graph.values[v].storage for f in calls for _, _, v in graph.frames[f].arguments}
        written = {storage for f in calls for i in inside[f] for storage in graph.layers[i].writes}
        if fqn and written <= made - given and len(graph.aliases_of.get(fqn, ((fqn,),))[0]) == 1:
            closed.add(fqn)
    return frozenset(closed)


def plain_leaves(graph: LayerGraph) -> frozenset[str]:
    """The leaf modules that make one tensor of one tensor, write into none, and read no values."""
    layers = [layer for layer in graph.layers if layer.is_module]
    plain = {layer.fqn for layer in layers if len(layer.operands) == len(layer.outputs) == 1 and not layer.writes}
    return frozenset(plain - {layer.fqn for layer in layers if len(layer.operands) != 1 or layer.writes})
