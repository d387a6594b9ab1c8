"""Finds blocks of equal structure that follow each other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from layerprune.graph import without_numbers
from layerprune.picture.flow import Flow, region_of
from layerprune.picture.module_tree import Branch, Child

FEWEST_MODULES = 3  # fewer modules of equal structure are drawn one by one
FEWEST_NODES = 6  # the same of single layers
_UNSEEN = frozenset({"reshape", "split", "other"})  # kinds of layers in which blocks that repeat may differ


class Structures:
    """Tells whether two children of the module tree have the same structure.

    Modules have if their classes, their children by name and type, and the edges inside are the same.
    """

    def __init__(self, flow: Flow, types: Mapping[str, str]) -> None:
        self._flow = flow
        self._types = types
        self._numbers: dict[Hashable, int] = {}
        self._of_branch: dict[int, int] = {}

    def of(self, child: Child, around: str) -> int:
        """A number that children of equal structure share; names count from inside the module ``around``."""
        if not isinstance(child, Branch):
            node = self._flow.nodes[child]
            layers = tuple(
                layer.type_name
                for layer in node.layers
                if layer.kind not in _UNSEEN and f"{region_of(layer)}.".startswith(f"{node.region}.")
            )
            return self._number((node.kind, without_numbers(inside(node.name, around)), layers))
        known = self._of_branch.get(id(child))
        if known is None:
            parts = tuple((self._tail(inner, child.name), self.of(inner, child.name)) for inner in child.children)
            edges = tuple(sorted(child.edges))
            key = (self._types.get(child.name, ""), parts, edges, tuple(sorted(child.outgoing)))
            known = self._of_branch[id(child)] = self._number(key)
        return known

    def _tail(self, child: Child, around: str) -> str:
        return inside(child.name if isinstance(child, Branch) else self._flow.nodes[child].name, around)

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def inside(name: str, around: str) -> str:
    """The name as seen from inside a module: ``conv1`` of ``layer1.0.conv1`` in ``layer1.0``."""
    return name[len(around) + 1 :] if around and name.startswith(f"{around}.") else name


def runs_of(branch: Branch, structures: Sequence[int]) -> list[tuple[int, int]]:
    """Split a module's children into runs ``(start, stop)`` that are drawn once, and single ones.

    Args:
        branch: the module.
        structures: a number for each child; equal ones can be a run.
    """
    readers, sources = _neighbours(branch)
    runs: list[tuple[int, int]] = []
    start = 0
    while start < len(structures):
        stop = start + 1
        while stop < len(structures) and structures[stop] == structures[start]:
            stop += 1
        fewest = FEWEST_MODULES if isinstance(branch.children[start], Branch) else FEWEST_NODES
        folds = stop - start >= fewest and _is_chain(start, stop, readers, sources)
        runs += [(start, stop)] if folds else [(i, i + 1) for i in range(start, stop)]
        start = stop
    return runs


def _neighbours(branch: Branch) -> tuple[list[set[int]], list[set[int]]]:
    """For each child the children that read it and that it reads; below 0 for nodes outside."""
    readers: list[set[int]] = [set() for _ in branch.children]
    sources: list[set[int]] = [set() for _ in branch.children]
    for a, b in branch.edges:
        readers[a].add(b)
        sources[b].add(a)
    for node, places in branch.incoming.items():
        for place in places:
            sources[place].add(-1 - node)
    for place in branch.outgoing:
        readers[place].add(-1)
    return readers, sources


def _is_chain(start: int, stop: int, readers: Sequence[set[int]], sources: Sequence[set[int]]) -> bool:
    """Whether all but the first read the same from outside, and all but the last are read by the same outside."""
    own = range(start, stop)
    outer = {frozenset(i for i in sources[place] if i not in own) for place in own[1:]}
    after = {frozenset(i for i in readers[place] if i not in own) for place in own[:-1]}
    return len(outer) == 1 and len(after) == 1
