"""The layer graph: layers as nodes, tensors as edges, and what follows from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx

from layerprune.graph.graph_data import Frame, GraphData
from layerprune.graph.lint import lint
from layerprune.graph.listing import listing
from layerprune.graph.liveness import Cut, DeadLayers
from layerprune.tables import brief


@dataclass(frozen=True, kw_only=True)
class LayerGraph(GraphData):
    """The layers of one forward as nodes, and its tensors as edges.

    Attributes:
        layers: in order of execution.
        values: every tensor that passes between layers, inputs first.
        frames: every module call, the model's own first.
        inputs: the model's input values.
        outputs: the values that the model returns.
        param_sizes: number of elements of each parameter, under each of its names.
        param_ids: a number for each parameter name; tied names share one.
        aliases: module name → all names of the same module object.
        shape_reads: (value, frame) where a forward reads a value's shape.
        written_params: names of parameters that the forward writes into.
        hooked: first names of modules whose forward hook replaces or keeps their arguments or results.
        implicit_inputs: values that a forward uses or returns without a call passing them: by a hook, an attribute, or
            a list or context that modules share.
        writes_arguments: whether a module's call changes a list or an object among its arguments.
        notes: remarks on the recording for the user.
    """

    def __str__(self) -> str:
        """List the graph, one line a layer: number, name, kind and type, operands -> results, parameters, caller.

        ``%3 2×8`` is value 3 of shape (2, 8), float32 unless a type follows; ``%1|%4`` is an operand that reads two
        values, ``const`` a parameter or a constant. Layers that reach no output end in ``(dead)``, layers that read no
        input of the model in ``(constant)``.
        """
        return listing(self)

    def __repr__(self) -> str:
        return brief(self, f"{len(self.layers):,} layers, {len(self.values):,} values, {self.num_params:,} parameters")

    def to_networkx(self) -> nx.DiGraph[Any]:
        """Return the graph for networkx: every layer, dead and constant ones included.

        Returns:
            Nodes are the layers' numbers, ``"in"`` (inputs and constants) and ``"out"``. A layer's node has ``name``,
            ``kind``, ``type_name``, ``params`` (names), ``shapes`` (of its outputs), ``frame`` (number) and
            ``is_live``. An edge has ``values``: the numbers of the values that its target reads of its source.
        """
        graph: nx.DiGraph[Any] = nx.DiGraph()
        graph.add_nodes_from(("in", "out"))
        for layer in self.layers:
            graph.add_node(
                layer.index,
                name=layer.name,
                kind=layer.kind,
                type_name=layer.type_name,
                params=layer.params,
                shapes=tuple(self.values[value].shape for value in layer.outputs),
                frame=layer.frame,
                is_live=layer.index in self.live,
            )
        reads: list[tuple[Any, list[int]]] = [(layer.index, sorted(self.read_by(layer.index))) for layer in self.layers]
        for target, values in [*reads, ("out", list(self.outputs))]:
            for value in values:
                made = self.values[value].layer
                source = "in" if made < 0 else made
                known = graph.edges[source, target]["values"] if graph.has_edge(source, target) else ()
                graph.add_edge(source, target, values=(*known, value))
        return graph

    def lint(self) -> None:
        """Check that the graph does not contradict itself.

        Numbers name existing layers and values, layers read values after they are made, calls are nested, tied
        parameters have one size, and ``live`` and ``readers`` follow from the operands.

        Raises:
            GraphError: a check fails; the message names the layers, values and calls.
        """
        lint(self)

    @cached_property
    def digraph(self) -> nx.DiGraph[Any]:
        """The live, input-dependent layers as a networkx graph, from ``"in"`` to ``"out"``."""
        graph: nx.DiGraph[Any] = nx.DiGraph()
        graph.add_node("in")
        for index in sorted(self.live):
            layer = self.layers[index]
            if layer.param_only:
                continue
            sources = {s for s in self.sources(index) if s < 0 or not self.layers[s].param_only}
            graph.add_edges_from(("in" if s < 0 else s, index) for s in sources)
        for value in self.outputs:
            source = self.values[value].layer
            if source < 0 or not self.layers[source].param_only:
                graph.add_edge("in" if source < 0 else source, "out")
        return graph

    @cached_property
    def dominator(self) -> Mapping[Any, Any]:
        """Layer → its immediate dominator (the last layer on every way to it), as in :attr:`digraph`."""
        return dict(nx.immediate_dominators(self.digraph, "in"))

    @cached_property
    def post_dominator(self) -> Mapping[Any, Any]:
        """Layer → the first layer that every way from it to the output passes."""
        return dict(nx.immediate_dominators(self.digraph.reverse(copy=False), "out"))

    @cached_property
    def trunk(self) -> tuple[int, ...]:
        """The layers that every way from input to output passes, in order."""
        found: list[int] = []
        node = self.dominator.get("out", "in")
        while node != "in":
            found.append(node)
            node = self.dominator[node]
        return tuple(reversed(found))

    def dominating(self, layer: int) -> Iterable[int]:
        """Yield the layers that every way to a layer passes, nearest first; -1 last, for the model's inputs."""
        node = self.dominator.get(layer)
        while node is not None and node != "in":
            yield node
            node = self.dominator[node]
        yield -1

    def kills_any(self, cut: Cut, layers: Collection[int]) -> bool:
        """Tell whether a cut kills one of the layers; faster than :meth:`dead`, which finds all dead layers."""
        return not DeadLayers(self, cut, layers).find().isdisjoint(layers)

    def dead(self, cut: Cut) -> frozenset[int]:
        """Return the layers that no longer reach an output once a cut is made.

        Only layers around the cut are visited: a layer dies with the last live reader of its values. In a graph without
        cycles that is the same as no longer reaching an output.
        """
        return DeadLayers(self, cut).find()

    @cached_property
    def param_users(self) -> Mapping[int, tuple[int, ...]]:
        """Parameter number → every layer that uses it, live or not."""
        users: dict[int, dict[int, None]] = {}
        for layer in self.layers:
            for name in layer.params:
                users.setdefault(self.param_ids[name], {})[layer.index] = None
        return {param: tuple(layers) for param, layers in users.items()}

    def dead_params(self, dead: frozenset[int]) -> frozenset[int]:
        """Return the parameters that only dead layers use."""
        touched = {self.param_ids[name] for index in dead for name in self.layers[index].params}
        gone = dead | (frozenset(range(len(self.layers))) - self.live)
        return frozenset(p for p in touched if all(user in gone for user in self.param_users[p]))

    @cached_property
    def calls(self) -> Mapping[str, tuple[int, ...]]:
        """Module name → its frames; frames that raised are left out where others exist."""
        found: dict[str, list[Frame]] = {}
        for frame in self.frames:
            found.setdefault(frame.fqn, []).append(frame)
        ended = {fqn: [frame for frame in frames if not frame.raised] or frames for fqn, frames in found.items()}
        return {fqn: tuple(frame.index for frame in frames) for fqn, frames in ended.items()}

    @cached_property
    def aliases_of(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """Module name → all names of the same module, where several exist."""
        return {name: (names,) for names in self.aliases.values() if len(names) > 1 for name in names}

    def all_names(self, modules: Iterable[str]) -> frozenset[str]:
        """Return all names of modules; a stand-in is set under each name of its module."""
        return frozenset(alias for name in modules for alias in self.aliases_of.get(name, ((name,),))[0])

    @cached_property
    def layers_inside(self) -> Mapping[int, tuple[int, ...]]:
        """Frame → the layers that run in it, nested frames included."""
        inside: dict[int, list[int]] = {frame.index: [] for frame in self.frames}
        for layer in self.layers:
            frame = layer.frame
            while frame >= 0:
                inside[frame].append(layer.index)
                frame = self.frames[frame].parent
        return {frame: tuple(layers) for frame, layers in inside.items()}

    @cached_property
    def results_of(self) -> Mapping[int, tuple[int, ...]]:
        """Value → the frames that return it, outermost first."""
        found: dict[int, list[int]] = {}
        for frame in self.frames:
            for value in frame.outputs:
                found.setdefault(value, []).append(frame.index)
        return {value: tuple(frames) for value, frames in found.items()}

    def name_of(self, value: int) -> str:
        """Name a value by the layer that makes it: ``conv1``, or ``split[1]`` for an output other than the first."""
        index = self.values[value].layer
        if index < 0:
            return "the model's input"
        layer = self.layers[index]
        own = layer.outputs.index(value) if value in layer.outputs else 0
        return layer.name if own == 0 else f"{layer.name}[{own}]"

    def describe(self, values: Sequence[int]) -> str:
        """Name values by their layers and shapes, for messages."""
        parts: list[str] = []
        for index in values:
            value = self.values[index]
            name = "the model's input" if value.layer < 0 else f"'{self.layers[value.layer].name}'"
            parts.append(f"{name} {'×'.join(map(str, value.shape))}")
        return ", ".join(parts)
