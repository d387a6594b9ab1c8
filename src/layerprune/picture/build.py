"""Makes the picture's records of a layer graph, its groups and a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from layerprune.graph import Group, LayerGraph
from layerprune.picture.flow import Flow, FlowNode
from layerprune.picture.module_tree import Branch, Child, module_tree
from layerprune.picture.records import Block, Box, BoxKind, Cells, Edge, Picture, PictureGroup, Region, Repeat
from layerprune.picture.repeats import Structures, inside, runs_of
from layerprune.plan import PruningPlan

_MOST_ENTRIES = 3  # more tensors come into a region at one place
_MOST_BLOCKS = 160  # of a region; more are drawn as cells
_MOST_BOXES = 420  # of a picture; more are drawn as cells
_CELLS = 48  # groups in one field of cells


def picture_of(
    graph: LayerGraph,
    groups: Sequence[Group],
    plan: PruningPlan | None = None,
    *,
    model: str = "",
    types: Mapping[str, str] | None = None,
    impact_unit: str = "",
) -> Picture:
    """Make the picture of a network.

    Args:
        graph: the layer graph.
        groups: its groups; shapes carry their places in this sequence.
        plan: its groups are marked as going.
        model: the model's class; the plan's if empty.
        types: module name → class; the plan's if None. Blocks of different classes are never drawn as one.
        impact_unit: unit of the groups' impacts; the plan's if empty.
    """
    if types is None:
        types = _types_of(plan)
    going = set(plan.groups) if plan else set[str]()
    about = tuple(
        PictureGroup(
            name=group.name,
            type_name=group.lead_transform.type_name,
            layers=tuple(layer.name for layer in group.layers),
            verdict=group.verdict,
            impact=group.impact,
            num_params=group.num_params,
            goes=group.name in going,
        )
        for group in groups
    )
    flow = Flow(graph, groups)
    root = module_tree(flow)
    name = model or (plan.model if plan else "") or types.get("", "") or "model"
    builder = _Builder(flow, types, name)
    region = builder.root(root)
    return Picture(model=name, root=region, groups=about, impact_unit=impact_unit or (plan.impact_unit if plan else ""))


def _types_of(plan: PruningPlan | None) -> dict[str, str]:
    lines = (line.partition(": ") for line in (plan.structure if plan else ()))
    return {name: rest.partition(" ")[0] for name, _, rest in lines}


def _num_boxes(block: Block) -> int:
    if isinstance(block, Region):
        return sum(map(_num_boxes, block.blocks))
    return _num_boxes(block.shown) if isinstance(block, Repeat) else 1


class _Builder:
    """Turns the module tree into records, with repeated blocks folded.

    Args:
        flow: has the nodes.
        types: module name → class.
        model: the model's class.
    """

    def __init__(self, flow: Flow, types: Mapping[str, str], model: str) -> None:
        self.flow = flow
        self.types = types
        self.model = model
        self.structures = Structures(flow, types)
        self.entries: dict[int, Mapping[int, int]] = {}  # module → node outside → entry
        self.most_levels = 0

    def root(self, root: Branch) -> Region:
        """The model; where folding leaves too many boxes, the deepest modules are drawn as cells, level by level."""
        self.most_levels = levels = _num_levels(root)
        while True:
            region = self._region(root, "", 0)
            if _num_boxes(region) <= _MOST_BOXES or self.most_levels <= 1:
                return region
            self.most_levels = min(self.most_levels, levels) - 1

    def _block(self, child: Child, around: str, level: int) -> Region | Box | Cells:
        if not isinstance(child, Branch):
            return self._box(self.flow.nodes[child], around)
        if level < self.most_levels:
            return self._region(child, around, level)
        self.entries[id(child)] = {}
        groups = tuple(group for n in child.nodes() if (group := self.flow.nodes[n].group) is not None)
        label = inside(child.name, around)
        return Cells(name=child.name, label=label, type_name=self.types.get(child.name, ""), groups=groups)

    def _region(self, branch: Branch, around: str, level: int) -> Region:
        blocks, item_of = self._blocks(branch, level)
        entries, into = self._entries(branch, item_of)
        self.entries[id(branch)] = entries
        edges: dict[Edge, None] = {}
        for source, item, entry in into:
            edges[Edge(source=-1 - source, target=item, entry=entry)] = None
        for (start, end), nodes in branch.edges.items():
            if item_of[start] != item_of[end]:
                for node in nodes:
                    entry = self._entry(branch.children[end], node)
                    edges[Edge(source=item_of[start], target=item_of[end], entry=entry)] = None
        for place in branch.outgoing:
            edges[Edge(source=item_of[place], target=len(blocks))] = None
        return Region(
            name=branch.name,
            label=inside(branch.name, around) or self.model,
            type_name=self.types.get(branch.name, ""),
            blocks=blocks,
            edges=tuple(edges),
            num_entries=max(entries.values(), default=-1) + 1,
            has_exit=bool(branch.outgoing),
        )

    def _blocks(self, branch: Branch, level: int) -> tuple[tuple[Block, ...], list[int]]:
        """The blocks of a module, and for each child the place of its block."""
        children = branch.children
        structures = [self.structures.of(child, branch.name) for child in children]
        runs = runs_of(branch, structures)
        if len(runs) > _MOST_BLOCKS:
            return self._fields_of_cells(branch)
        blocks: list[Block] = []
        item_of: list[int] = []
        for start, stop in runs:
            item_of += [len(blocks)] * (stop - start)
            shown = self._block(children[start], branch.name, level + 1)
            if stop - start == 1:
                blocks.append(self._without_frame(children[start], shown))
                continue
            reads = any(start <= a < b - 1 and b < stop for a, b in branch.edges)
            for child in children[start + 1 : stop]:  # all come in where the first has its entries
                if isinstance(child, Branch):
                    self.entries[id(child)] = self.entries[id(children[start])]
            blocks.append(
                Repeat(
                    shown=shown,
                    labels=tuple(inside(self._name(child), branch.name) for child in children[start:stop]),
                    columns=tuple(self._groups(child) for child in children[start:stop]),
                    reads_earlier=reads,
                )
            )
        return tuple(blocks), item_of

    def _without_frame(self, child: Child, block: Region | Box | Cells) -> Block:
        """Repeated blocks alone in a module need no frame around them."""
        if not (isinstance(child, Branch) and isinstance(block, Region) and len(block.blocks) == 1):
            return block
        only = block.blocks[0]
        if not isinstance(only, Repeat):
            return block
        self.entries[id(child)] = {node: self._entry(child.children[0], node) for node in child.incoming}
        return replace(only, labels=tuple(f"{block.label}.{label}" for label in only.labels))

    def _fields_of_cells(self, branch: Branch) -> tuple[tuple[Block, ...], list[int]]:
        """Fields of cells in place of more children than can be told apart."""
        blocks: list[Block] = []
        item_of: list[int] = []
        parts: list[list[Child]] = [[]]
        was_end = False
        for child in branch.children:
            is_end = not isinstance(child, Branch) and self.flow.nodes[child].kind in ("input", "output")
            if is_end or was_end or sum(len(self._groups(each)) for each in parts[-1]) >= _CELLS:
                parts.append([])
            parts[-1].append(child)
            was_end = is_end
        for part in filter(None, parts):
            item_of += [len(blocks)] * len(part)
            blocks.append(self._cells_of(part, branch.name))
        return tuple(blocks), item_of

    def _cells_of(self, part: Sequence[Child], around: str) -> Box | Cells:
        """A field of cells, or the box of an input, of the output, or of a layer alone."""
        for child in part:
            if isinstance(child, Branch):
                self.entries[id(child)] = {}
        named = [child for child in part if self._groups(child)]
        if not named and len(part) == 1 and not isinstance(part[0], Branch):
            return self._box(self.flow.nodes[part[0]], around)
        first, last = (inside(self._name(child), around) for child in ((named or part)[0], (named or part)[-1]))
        groups = tuple(group for child in part for group in self._groups(child))
        label = first if first == last else f"{first} … {last}"
        return Cells(name=around, label=label, type_name="", groups=groups)

    def _entries(self, branch: Branch, item_of: Sequence[int]) -> tuple[dict[int, int], list[tuple[int, int, int]]]:
        """Node outside → entry; and each entry with the blocks that it leads to, and their entries.

        Tensors that the same blocks read share an entry.
        """
        # As in the region around: the model's inputs in their order, long edges at the right.
        inputs = {node for node in branch.incoming if self.flow.nodes[node].kind == "input"}
        latest_first = sorted(branch.incoming.items(), key=lambda each: each[0] if each[0] in inputs else -1 - each[0])
        keys = {node: frozenset(item_of[place] for place in places) for node, places in latest_first}
        several = list(dict.fromkeys(keys.values()))
        entry_of_key = {key: min(number, _MOST_ENTRIES - 1) for number, key in enumerate(several)}
        entries = {node: entry_of_key[key] for node, key in keys.items()}
        into: dict[tuple[int, int, int], None] = {}
        for node, places in branch.incoming.items():
            for place in places:
                into[entries[node], item_of[place], self._entry(branch.children[place], node)] = None
        return entries, list(into)

    def _entry(self, child: Child, node: int) -> int:
        return self.entries[id(child)].get(node, 0) if isinstance(child, Branch) else 0

    def _name(self, child: Child) -> str:
        return child.name if isinstance(child, Branch) else self.flow.nodes[child].name

    def _groups(self, child: Child) -> tuple[int, ...]:
        nodes = child.nodes() if isinstance(child, Branch) else [child]
        return tuple(group for number in nodes if (group := self.flow.nodes[number].group) is not None)

    def _box(self, node: FlowNode, around: str) -> Box:
        kind, detail = node.kind, ""
        if node.layers:
            first = node.layers[0]
            kind = _kind_drawn(node)
            detail = first.type_name if node.group is not None or first.is_module else _functions(node)
        calls = len(
            {layer.call for layer in node.layers if layer.name.partition("#")[0] == node.name.partition("#")[0]}
        )
        label = inside(node.name, around)
        if node.layers and not node.layers[0].is_module and node.group is None and node.region != around:
            label = inside(node.region, around)
        return Box(
            name=node.name,
            label=label,
            kind=kind,
            detail=detail,
            group=node.group,
            num_calls=max(calls, 1),
        )


def _kind_drawn(node: FlowNode) -> BoxKind:
    functions = {layer.function for layer in node.layers if layer.kind == "merge"}
    if node.kind == "merge":
        return "concat" if functions & _CONCATS else "merge" if functions else "other"
    if node.kind == "attention":
        names = [layer.type_name.lower() for layer in node.layers]
        return "attention" if any("attention" in name or "softmax" in name for name in names) else "other"
    return node.kind


_CONCATS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"})


def _functions(node: FlowNode) -> str:
    return ", ".join(dict.fromkeys(layer.type_name for layer in node.layers))


def _num_levels(branch: Branch) -> int:
    return 1 + max((_num_levels(child) for child in branch.children if isinstance(child, Branch)), default=0)
