"""The data flow of a layer graph between groups, merges and the other layers that are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from layerprune.graph import Group, Layer, LayerGraph
from layerprune.picture.records import BoxKind

#: Layers outside of groups that have a box of their own.
_BOXES: Mapping[str, BoxKind] = {
    "embedding": "embedding",
    "normalization": "normalization",
    "pooling": "pooling",
    "transform": "other",
}
_MOST_INPUTS = 4  # more inputs have one box


@dataclass(eq=False, kw_only=True)
class FlowNode:
    """A group, or layers in no group that are drawn as one box.

    Attributes:
        name: name of the first layer.
        kind: what is drawn.
        region: the module whose forward calls it.
        layers: its layers; those of other modules' forwards are left out where it is no group.
        group: place of the group.
    """

    name: str
    kind: BoxKind
    region: str
    layers: list[Layer] = field(default_factory=list[Layer])
    group: int | None = None


class Flow:
    """Nodes in order of execution, and the edges between them, each from an earlier node to a later one.

    Layers that do not depend on the model's input, that reach no output, or that only make masks and positions of
    integers are left out. A reshape, an activation or other arithmetic of one tensor is part of the node before it.

    Attributes:
        nodes: in order of their first layers, inputs first, the output last.
        edges: pairs of places in ``nodes``.
    """

    def __init__(self, graph: LayerGraph, groups: Sequence[Group]) -> None:
        self.graph = graph
        self.nodes: list[FlowNode] = []
        self.edges: dict[tuple[int, int], None] = {}
        self._of_layer: dict[int, int] = {}
        self._of_input: dict[int, int] = {}
        self._of_group: dict[int, int] = {}
        self._side: dict[int, dict[int, None]] = {}  # a layer that makes masks or positions → the inputs behind it
        self._group_of = {layer: place for place, group in enumerate(groups) for layer in group.members}
        self._add_inputs()
        for layer in graph.layers:
            if layer.index in graph.live and not layer.param_only:
                self._add(layer)
        self._add_output()
        self._drop_unread_inputs()

    def _new(self, name: str, kind: BoxKind, region: str = "", group: int | None = None) -> int:
        self.nodes.append(FlowNode(name=name, kind=kind, region=region, group=group))
        return len(self.nodes) - 1

    def _add_inputs(self) -> None:
        graph = self.graph
        names = {value: keyword for _, keyword, value in (graph.frames[0].arguments if graph.frames else ())}
        used = [value for value in graph.inputs if graph.readers.get(value) or value in graph.outputs]
        one = len(used) > _MOST_INPUTS
        for number, value in enumerate(used):
            if one and number:
                self._of_input[value] = self._of_input[used[0]]
                continue
            name = "inputs" if one else names.get(value) or ("input" if len(used) == 1 else f"input {number}")
            self._of_input[value] = self._new(name, "input")

    def _of_value(self, value: int) -> int | None:
        """The node that makes a value; None for constants, masks and positions."""
        made = self.graph.values[value].layer
        return self._of_input.get(value) if made < 0 else self._of_layer.get(made)

    def _inputs_behind(self, layer: Layer) -> dict[int, None]:
        """The inputs that masks and positions are made of which a layer reads."""
        found: dict[int, None] = {}
        for value in sorted(self.graph.read_by(layer.index)):
            found.update(self._side.get(self.graph.values[value].layer, {}))
        return found

    def _add(self, layer: Layer) -> None:
        values = sorted(self.graph.read_by(layer.index))
        sources = list(dict.fromkeys(node for value in values if (node := self._of_value(value)) is not None))
        group = self._group_of.get(layer.index)
        if group is None and layer.kind not in _BOXES and all(map(self._is_side_value, values)):
            inputs = {s: None for s in sources}
            self._side[layer.index] = {**inputs, **self._inputs_behind(layer)}
            return
        sources = sources or list(self._inputs_behind(layer))
        if group is None:
            node = self._outside_of_groups(layer, sources)
        elif group in self._of_group:
            node = self._of_group[group]
        else:
            node = self._of_group[group] = self._new(layer.name, "group", region_of(layer), group)
        self._of_layer[layer.index] = node
        if group is not None or self.nodes[node].region == region_of(layer) or not self.nodes[node].layers:
            self.nodes[node].layers.append(layer)
        for source in sources:
            if source < node:  # else the module is called again, on what it led to
                self.edges[source, node] = None

    def _is_side_value(self, value: int) -> bool:
        """Whether a value is a mask, a position or a constant: made of integers and constants alone."""
        made = self.graph.values[value].layer
        if made >= 0:
            return self.graph.layers[made].param_only or made in self._side
        dtype = self.graph.values[value].dtype
        return not (dtype.is_floating_point or dtype.is_complex)

    def _outside_of_groups(self, layer: Layer, sources: Sequence[int]) -> int:
        """The node of a layer in no group: one of its own, or an earlier one that it belongs to.

        A function of several tensors belongs to the last node that it reads, where that is a merge of the same
        forward: no way leads from there to the function past other nodes.
        """
        if layer.kind in _BOXES:
            return self._new(layer.name, _BOXES[layer.kind], region_of(layer))
        if len(sources) == 1 and layer.kind != "attention":
            return sources[0]
        kind: BoxKind = "attention" if layer.kind == "attention" else "merge"
        last = max(sources, default=None)
        if last is not None and self.nodes[last].region == region_of(layer):
            node = self.nodes[last]
            if node.kind in ("merge", "attention"):
                node.kind = kind if kind == "attention" else node.kind
                return last
        return self._new(layer.name, kind, region_of(layer))

    def _add_output(self) -> None:
        made = (self._of_value(value) for value in self.graph.outputs)
        sources = dict.fromkeys(node for node in made if node is not None)
        if sources:
            end = self._new("output", "output")
            self.edges.update(dict.fromkeys((source, end) for source in sources))

    def _drop_unread_inputs(self) -> None:
        read = {source for source, _ in self.edges}
        kept = [i for i, node in enumerate(self.nodes) if node.kind != "input" or i in read]
        place = {old: new for new, old in enumerate(kept)}
        self.nodes = [self.nodes[i] for i in kept]
        self.edges = {(place[a], place[b]): None for a, b in self.edges}


def region_of(layer: Layer) -> str:
    """The module whose forward calls a layer, as far as names tell."""
    return layer.fqn.rpartition(".")[0] if layer.is_module else layer.fqn
