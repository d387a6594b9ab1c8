"""What a removal touches, and whether another removal could hide its faults."""

from __future__ import annotations

from dataclasses import dataclass

from layerprune.edits import Fold, Guard, Shorten, Slice
from layerprune.graph import LayerGraph
from layerprune.removals import Candidate, Lowering


@dataclass
class Footprint:
    """What a removal touches.

    Attributes:
        dead: the layers that die.
        names: the modules and parameters that are replaced, and the transforms that take a projection in.
        returned: the values that the stand-ins return, but for substitutes, which are tensors like those they stand
            for, and the dropped operands of concats, which the cut itself names.
        read: the values that the dead layers read.
        dropped: the operands that concats lose.
        beside: the neighbours of elements that leave a container; they stay, to show that their places do not matter.
        containers: the containers that elements leave.
        moves: whether channels that are left are moved on the way; what else is lost then changes where to.
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
        """Measure one removal."""
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
        moves = bool(lowering.moved)
        names |= resized
        return cls(set(lowering.dead), names, returned, read, set(candidate.cut.dropped), beside, containers, moves)

    def disturbs(self, other: Footprint) -> bool:
        """Whether one of two removals could hide what is wrong with the other."""
        if (self.moves or other.moves) and self.dropped and other.dropped:
            return True
        crossed = self.returned & other.read or other.returned & self.read
        crossed = crossed or self.beside & other.names
        return bool(self.dead & other.dead or crossed) or _overlap(other.names, self.names)

    def add(self, other: Footprint) -> None:
        """Take another removal in."""
        self.dead |= other.dead
        self.names |= other.names
        self.returned |= other.returned
        self.read |= other.read
        self.dropped |= other.dropped
        self.beside |= other.beside
        self.moves |= other.moves


def _overlap(names: set[str], touched: set[str]) -> bool:
    """Whether a module in one set is, holds or lies in one of the other."""
    if names & touched:
        return True
    return any(name in _ancestors(other) for other in touched for name in names & _ancestors(other)) or any(
        _ancestors(name) & touched for name in names
    )


def _ancestors(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def touched(graph: LayerGraph, joint: Lowering) -> list[str]:
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
