"""Finds every substitution in the layer graph that removes a group, and why a group has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from layerprune.graph import Cut, Group, Layer, LayerGraph, Refusal, RefusalCode
from layerprune.removals.container_elements import alike, elements
from layerprune.removals.protection import protected_by_name, stem_and_head
from layerprune.tensors import traits_of

GRANULARITIES = ("group", "branch", "block")

# Kinds of layers that make pieces of a tensor, or tensors of their form.
_CUTTING = frozenset({"split", "reshape", "activation", "dropout"})

# How many dominating tensors to look at for one that has the right shape and whose use removes a transform.
_LOOK_BACK = 400


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A substitution that would take at least one whole group out, not yet realised nor proven.

    Attributes:
        name: what is replaced by what, for people; unique among a model's candidates.
        subject: the layers and numbers that the name tells of: removals of repeated blocks are compared by them.
        kind: ``bypass``, ``branch``, ``gate``, ``concat``, ``several``, ``shared`` or ``block``: the row of the removal
            table.
        cut: the change to the layer graph.
        dead: the layers that die.
        groups: names of the groups that leave.
        waits: whether it is of use only where nothing tidier takes out the same.
    """

    name: str
    subject: tuple[str | int, ...]
    kind: str
    cut: Cut
    dead: frozenset[int]
    groups: tuple[str, ...]
    waits: bool = False


@dataclass(frozen=True)
class Candidates:
    """What :func:`find_candidates` found.

    Attributes:
        found: the candidates, in lists of alternatives: the first of a list that can be realised stands for it.
        critical: group name → why it may not go at all.
    """

    found: tuple[tuple[Candidate, ...], ...]
    critical: Mapping[str, Refusal]


def find_candidates(
    graph: LayerGraph,
    groups: Sequence[Group],
    modules: Mapping[str, nn.Module],
    *,
    protect: Iterable[str] = (),
    protect_io: bool = True,
    granularity: str = "group",
) -> Candidates:
    """Find every substitution that takes a group out.

    Args:
        graph: the layer graph.
        groups: its groups.
        modules: the model's modules by name; only containers are looked at.
        protect: patterns of dotted names (``fnmatch``); what matches, and all below it, stays.
        protect_io: keep stem and head; see :func:`stem_and_head`.
        granularity: ``group`` for any removal, ``branch`` for branches, gates and concat operands, ``block`` for
            elements of ``Sequential`` and ``ModuleList`` only.

    Raises:
        UnknownNameError: a pattern in ``protect`` matches nothing; the message lists what is there.
    """
    critical = protected_by_name(graph, groups, tuple(protect))
    if protect_io:
        critical = {**stem_and_head(graph, groups), **critical}
    finder = _Finder(graph, groups, modules)
    return Candidates(tuple(finder.find(granularity)), critical)


class _Finder:
    def __init__(self, graph: LayerGraph, groups: Sequence[Group], modules: Mapping[str, nn.Module]) -> None:
        self.graph = graph
        self.groups = groups
        self.modules = modules
        self.leads = {call: group for group in groups for call in group.calls}
        self.seen: set[tuple[object, ...]] = set()
        self.partial: list[tuple[str, Cut, frozenset[int]]] = []  # what takes out some calls of groups with several

    def find(self, granularity: str) -> Iterator[tuple[Candidate, ...]]:
        if granularity == "block":
            yield from self.singles(self.blocks())
            yield from self.singles(self.shared())
            return
        yield from self.singles(self.merges())
        yield from self.singles(self.several())
        yield from self.singles(self.blocks())
        if granularity == "group":
            yield from self.bypasses()
        yield from self.singles(self.shared())

    def singles(self, candidates: Iterable[Candidate | None]) -> Iterator[tuple[Candidate, ...]]:
        for candidate in candidates:
            if candidate is not None:
                yield (candidate,)

    def candidate(self, kind: str, cut: Cut, name: str, *subject: str | int, waits: bool = False) -> Candidate | None:
        """Make a candidate of a cut, if it is new and takes a whole group out; its name is filled in by its subject."""
        if key_of(cut) in self.seen:
            return None
        dead = self.graph.dead(cut)
        leaving = {self.leads[i].name: self.leads[i] for i in sorted(dead) if i in self.leads}
        gone = [g.name for g in leaving.values() if all(call in dead for call in g.calls)]
        if not gone:
            self.partial += [(kind, cut, dead)] if leaving else []
            return None
        self.seen.add(key_of(cut))
        return Candidate(
            name=name.format(*subject),
            subject=subject,
            kind=kind,
            cut=cut,
            dead=dead,
            groups=tuple(gone),
            waits=waits,
        )

    # ---- rows of the removal table --------------------------------------------------------------------------------

    def merges(self) -> Iterator[Candidate | None]:
        """Drop one operand of an add, a product or a concat."""
        for layer in self.live_layers():
            kind = merge_kind(layer)
            if kind in ("add", "mul"):
                for kept in self.keepable(layer):
                    others = [read[0] for read in layer.operands if read and read != (kept,)]
                    what = self.graph.name_of(others[0]) if others else "its parameter"
                    cut = Cut({layer.outputs[0]: kept})
                    yield self.candidate("gate" if kind == "mul" else "branch", cut, "{} without {}", layer.name, what)
            elif kind == "cat" and len(layer.operands) > 1:
                for read in dict.fromkeys(layer.operands):
                    if len(read) == 1 and len({*layer.operands}) > 1:
                        cut = Cut(dropped=frozenset({(layer.index, read[0])}))
                        what = self.graph.name_of(read[0])
                        yield self.candidate("concat", cut, "{} without {}", layer.name, what)

    def several(self) -> Iterator[Candidate | None]:
        """Drop a tensor from every merge that reads it, or pieces of it, where several do and nothing else does."""
        for value, readers in self.graph.readers.items():
            several = len(readers) > 1 or self.is_cut_up(readers)
            if not several or self.graph.values[value].layer < 0 or value in self.graph.outputs:
                continue
            pieces = self.pieces(value)
            substitutes: dict[int, int] = {}
            dropped: set[tuple[int, int]] = set()
            for reader, piece in [(r, v) for v in sorted(pieces) for r in self.graph.readers.get(v, ())]:
                layer = self.graph.layers[reader]
                kind = merge_kind(layer)
                kept = [v for v in self.keepable(layer) if v not in pieces] if kind in ("add", "mul") else []
                if kind == "cat" and len(set(layer.operands)) > 1:
                    dropped.add((reader, piece))
                elif kept:
                    substitutes[layer.outputs[0]] = kept[0]
                elif not pieces.issuperset(layer.outputs):
                    break
            else:
                num = len(substitutes) + len({merge for merge, _ in dropped})
                if num > 1:
                    cut = Cut(substitutes, frozenset(dropped))
                    yield self.candidate("several", cut, "{} merges without {}", num, self.graph.name_of(value))

    def is_cut_up(self, readers: Sequence[int]) -> bool:
        """Whether the one layer that reads a value makes pieces of it."""
        return any(self.graph.layers[r].kind == "split" and len(self.graph.layers[r].outputs) > 1 for r in readers)

    def pieces(self, value: int) -> set[int]:
        """A value, and what is cut out of it or made of such a piece alone."""
        found, pending = {value}, [value]
        while pending:
            for reader in self.graph.readers.get(pending.pop(), ()):
                layer = self.graph.layers[reader]
                if layer.kind in _CUTTING and not layer.params and self.graph.read_by(reader) <= found:
                    pending += {*layer.outputs} - found
                    found |= {*layer.outputs}
        return found if found.isdisjoint(self.graph.outputs) else {value}

    def blocks(self) -> Iterator[Candidate | None]:
        """Let an element of a container hand on its inputs, in place of all that it returns to others."""
        for element in elements(self.graph, self.modules):
            name = _call_name(element.frame.fqn, element.frame.call)
            plural = "s" if len(element.cut.substitutes) > 1 else ""
            yield self.candidate("block", element.cut, "{} by its input{}", name, plural)

    def shared(self) -> Iterator[Candidate | None]:
        """Take a module that is called several times out at every call, each time in the smallest way.

        That is with the whole branches that it lies on, and then in whatever way is smaller.
        """
        yield from self.at_all_calls([part for part in self.partial if part[0] != "bypass"], waits=False)
        yield from self.at_all_calls(self.partial, waits=True)

    def at_all_calls(
        self, partial: Iterable[tuple[str, Cut, frozenset[int]]], *, waits: bool
    ) -> Iterator[Candidate | None]:
        how = "by itself" if waits else "with its branches"
        ways: dict[int, tuple[Cut, frozenset[int]]] = {}
        for _, cut, dead in partial:
            for call in dead & self.leads.keys():
                if call not in ways or len(dead) < len(ways[call][1]):
                    ways[call] = cut, dead
        for group in reversed(self.groups):  # what takes an earlier one out may take this one along
            if len(group.calls) < 2 or not all(call in ways for call in group.calls):
                continue
            cuts = [ways[call][0] for call in group.calls]
            substitutes = {y: s for cut in cuts for y, s in cut.substitutes.items()}
            if all(substitutes[y] == s for cut in cuts for y, s in cut.substitutes.items()):
                joint = Cut(substitutes, frozenset(pair for cut in cuts for pair in cut.dropped))
                name = "{} {} at all its {} calls"
                yield self.candidate("shared", joint, name, group.name, how, len(group.calls), waits=waits)

    def bypasses(self) -> Iterator[tuple[Candidate, ...]]:
        """Replace a layer's value by the nearest tensor of its shape that dominates it; a group's latest first."""
        in_group = {index: group.name for group in self.groups for index in group.members}
        alternatives: dict[str, list[Candidate]] = {}
        for layer in reversed(list(self.live_layers())):
            found = self.bypass(layer, in_group)
            if found is not None:
                alternatives.setdefault(in_group.get(layer.index, layer.name), []).append(found)
        for candidates in reversed(alternatives.values()):
            yield tuple(candidates)

    def bypass(self, layer: Layer, in_group: Mapping[int, str]) -> Candidate | None:
        for value in layer.outputs:
            if value not in self.graph.readers and value not in self.graph.outputs:
                continue
            if not self.hangs_on(value):
                continue
            for looked, dominator in enumerate(self.graph.dominating(layer.index)):
                if looked > _LOOK_BACK:
                    break
                if dominator >= 0 and in_group.get(dominator, "") == in_group.get(layer.index):
                    continue
                for substitute in self.graph.layers[dominator].outputs if dominator >= 0 else self.graph.inputs:
                    if self.alike(substitute, value):
                        cut = Cut({value: substitute})
                        what = self.graph.name_of(substitute)
                        found = self.candidate("bypass", cut, "{} by {}", layer.name, what, waits=True)
                        if found is not None or key_of(cut) in self.seen:
                            return found
        return None

    def hangs_on(self, value: int) -> bool:
        """Whether some transform reaches the output through a value only; else no substitute takes one out."""
        return self.graph.kills_any(Cut({value: self.graph.inputs[0]}), self.leads)  # any other keeps more alive

    # ---- small questions ------------------------------------------------------------------------------------------

    def live_layers(self) -> Iterator[Layer]:
        for layer in self.graph.layers:
            if layer.index in self.graph.live and not layer.param_only and layer.outputs:
                yield layer

    def keepable(self, layer: Layer) -> list[int]:
        """The operands of a merge that alone have its result's shape and type."""
        reads = [read[0] for read in layer.operands if len(read) == 1]
        if traits_of(layer.function or layer.functions[0]).is_left_only:
            reads = [read[0] for read in layer.operands[:1] if len(read) == 1]
        whole = [v for v in dict.fromkeys(reads) if self.alike(v, layer.outputs[0])]
        return whole if len(layer.operands) > 1 and len(set(layer.operands)) > 1 else []

    def alike(self, one: int, other: int) -> bool:
        return alike(self.graph, one, other)


def key_of(cut: Cut) -> tuple[object, ...]:
    """What tells a cut from a model's others; hashable."""
    return tuple(sorted(cut.substitutes.items())), tuple(sorted(cut.dropped))


def merge_kind(layer: Layer) -> str:
    """The kind of merge that a layer is (``add``, ``mul``, ``cat``); empty where it is none or merges nothing."""
    name = layer.function or (layer.functions[0] if len(layer.functions) == 1 else "")
    kind = traits_of(name).merge
    return kind if kind in ("add", "mul", "cat") and len(layer.operands) > 1 else ""


def _call_name(fqn: str, call: int) -> str:
    return fqn if call == 0 else f"{fqn}#{call}"


# ---- why there is none ------------------------------------------------------------------------------------------


def why_not(graph: LayerGraph, group: Group) -> Refusal:
    """Say why no substitution takes a group out, from the shapes around it."""
    lead, last = graph.layers[group.calls[0]], graph.layers[group.members[-1]]
    after = graph.values[lead.outputs[0]].shape
    before = graph.values[lead.operands[0][0]].shape if lead.operands and lead.operands[0] else after
    channel = 1 if any("conv" in name for name in lead.functions) else len(after) - 1
    if len(before) == len(after) > channel and before[channel] != after[channel]:
        return Refusal(RefusalCode.CHANGES_CHANNELS, group.name, before=before[channel], after=after[channel])
    if len(before) == len(after) and before != after:
        return Refusal(RefusalCode.CHANGES_SHAPE, group.name, before=_sizes(before), after=_sizes(after))
    if len(group.calls) > 1:
        return Refusal(RefusalCode.SEVERAL_CALLS, group.name, num=len(group.calls))
    shape = _sizes(graph.values[last.outputs[0]].shape)
    return Refusal(RefusalCode.NO_TENSOR_OF_ITS_SHAPE, group.name, shape=shape)


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
