"""The layers and modules that a removal touches, and whether another removal could hide its faults."""

from __future__ import annotations

from dataclasses import dataclass

from layerprune.edits import Fold, Guard, Shorten, Slice
from layerprune.graph import LayerGraph
from layerprune.removals import Candidate, Lowering


@dataclass(kw_only=True)
class Footprint:
    """Layers, modules and values that a removal touches.

    Attributes:
        dead: the layers that die.
        names: the replaced modules and parameters, and the transforms that a projection is folded into.
        returned: the values that stand-ins return, without substitutes (tensors of the same form) and without the
            dropped operands of concats (named by the cut).
        read: the values that the dead layers read.
        dropped: the operands that concats lose.
        beside: the neighbours of elements that leave a container; they stay, so that the proof covers their new places.
        containers: the containers that elements leave.
        moves: whether remaining channels move on the way; other dropped channels then change where they move.
    """

    dead: set[int]
    names: set[str]
    returned: set[int]
    read: set[int]
    dropped: set[tuple[int, int]]
    beside: set[str]
    containers: set[str]
    moves: bool

    @classmethod
    def of(cls, graph: LayerGraph, candidate: Candidate, lowering: Lowering) -> Footprint:
        edits = [edit for edit in lowering.edits if not isinstance(edit, (Guard, Slice, Fold))]
        names = {name for edit in edits for name in edit.targets}
        resized = {edit.fqn for edit in lowering.edits if isinstance(edit, Fold)}
        beside = {
            f"{e.prefix}{i + step}" for e in edits if isinstance(e, Shorten) for i in e.removed for step in (-1, 1)
        }
        containers = {edit.fqn for edit in edits if isinstance(edit, Shorten)}
        frames = [graph.frames[f] for name in graph.all_names(names) for f in graph.calls.get(name, ())]
        known = lowering.carried | {value for _, value in candidate.cut.dropped}
        returned = {value for frame in frames for value in frame.outputs if value not in known}
        read = {value for layer in lowering.dead for value in graph.read_by(layer)}
        return cls(
            dead=set(lowering.dead),
            names=names | resized,
            returned=returned,
            read=read,
            dropped=set(candidate.cut.dropped),
            beside=beside,
            containers=containers,
            moves=bool(lowering.moved),
        )

    def disturbs(self, other: Footprint) -> bool:
        """Whether one of two removals could hide the other's faults."""
        if (self.moves or other.moves) and self.dropped and other.dropped:
            return True
        crossed = self.returned & other.read or other.returned & self.read
        crossed = crossed or self.beside & other.names
        return bool(self.dead & other.dead or crossed) or _overlap(other.names, self.names)

    def add(self, other: Footprint) -> None:
        self.dead |= other.dead
        self.names |= other.names
        self.returned |= other.returned
        self.read |= other.read
        self.dropped |= other.dropped
        self.beside |= other.beside
        self.moves |= other.moves


def _overlap(names: set[str], touched: set[str]) -> bool:
    """Whether a module in one set is, contains or lies in a module of the other."""
    if names & touched:
        return True
    return any(name in _ancestors(other) for other in touched for name in names & _ancestors(other)) or any(
        _ancestors(name) & touched for name in names
    )


def _ancestors(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def touched(graph: LayerGraph, joint: Lowering) -> list[str]:
    """All names of the modules whose computation a lowering changes."""
    names = [name for edit in joint.edits for name in (edit.fqn, *edit.targets)] + [
        moved.layer.fqn for moved in joint.moved
    ]
    params = [graph.param_ids[edit.fqn] for edit in joint.edits if edit.kind == "drop_parameter"]
    names += [graph.layers[user].fqn for param in params for user in graph.param_users[param]]
    return [alias for name in names for alias in graph.aliases_of.get(name, ((name,),))[0]]


def closed_modules(graph: LayerGraph) -> frozenset[str]:
    """Modules with children that write into no earlier tensor and read no values of tensors."""
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
    """Leaf modules that map one tensor to one tensor, write into none and read no values of tensors."""
    layers = [layer for layer in graph.layers if layer.is_module]
    plain = {layer.fqn for layer in layers if len(layer.operands) == len(layer.outputs) == 1 and not layer.writes}
    return frozenset(plain - {layer.fqn for layer in layers if len(layer.operands) != 1 or layer.writes})
