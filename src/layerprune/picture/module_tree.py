"""The module tree around the nodes of a data flow, with the edges of each level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from layerprune.picture.flow import Flow

Child: TypeAlias = "Branch | int"


@dataclass(eq=False, kw_only=True)
class Branch:
    """A module with nodes or modules inside.

    Attributes:
        name: its dotted name.
        children: modules, and numbers of nodes, in order of execution.
        edges: pairs of places in ``children``, each with the nodes that the tensors come from.
        incoming: node outside → the children that read it.
        outgoing: children that are read outside.
    """

    name: str
    children: list[Child] = field(default_factory=list[Child])
    edges: dict[tuple[int, int], list[int]] = field(default_factory=dict[tuple[int, int], list[int]])
    incoming: dict[int, dict[int, None]] = field(default_factory=dict[int, dict[int, None]])
    outgoing: dict[int, None] = field(default_factory=dict[int, None])

    def nodes(self) -> Iterator[int]:
        """The numbers of the nodes inside, in order of execution."""
        for child in self.children:
            if isinstance(child, Branch):
                yield from child.nodes()
            else:
                yield child


def module_tree(flow: Flow) -> Branch:
    """Sort the nodes into the tree of modules, and lift each edge to the modules around its ends.

    A module that holds one node or one module alone is left out; the model itself stays.
    """
    root = Branch(name="")
    known = {"": root}

    def branch(name: str) -> Branch:
        found = known.get(name)
        if found is None:
            found = known[name] = Branch(name=name)
            branch(name.rpartition(".")[0]).children.append(found)
        return found

    for number, node in enumerate(flow.nodes):
        branch(node.region).children.append(number)
    _flatten(root)
    _lift_edges(root, flow)
    return root


def _flatten(branch: Branch) -> None:
    """Put an only child into the place of its module, all the way down."""
    for place, child in enumerate(branch.children):
        while isinstance(child, Branch) and len(child.children) == 1:
            child = child.children[0]
        branch.children[place] = child
        if isinstance(child, Branch):
            _flatten(child)


def _lift_edges(root: Branch, flow: Flow) -> None:
    ways: dict[int, tuple[tuple[Branch, int], ...]] = {}
    pending: list[tuple[Branch, tuple[tuple[Branch, int], ...]]] = [(root, ())]
    while pending:
        branch, way = pending.pop()
        for place, child in enumerate(branch.children):
            further = (*way, (branch, place))
            if isinstance(child, Branch):
                pending.append((child, further))
            else:
                ways[child] = further
    for source, target in sorted(flow.edges):
        out, into = ways[source], ways[target]
        level = 0
        while out[level] == into[level]:
            level += 1
        branch, place = out[level]
        branch.edges.setdefault((place, into[level][1]), []).append(source)
        for inner, place in out[level + 1 :]:
            inner.outgoing[place] = None
        for inner, place in into[level + 1 :]:
            inner.incoming.setdefault(source, {})[place] = None
