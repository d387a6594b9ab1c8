"""Finds substitutions in the layer graph that remove a group, and reasons why a group has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from layerprune.graph import Cut, Group, Layer, LayerGraph, Refusal, RefusalCode
from layerprune.removals.container_elements import alike, elements
from layerprune.removals.protection import protected_by_name, stem_and_head
from layerprune.tensors import traits_of

GRANULARITIES = ("group", "branch", "block")

# Kinds of layers that make pieces of a tensor, or tensors of the same shape as a piece.
_CUTTING = frozenset({"split", "reshape", "activation", "dropout"})

# Number of dominating tensors to search for one with the right shape whose use removes a transform.
_LOOK_BACK = 400


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A substitution that takes at least one whole group out, not yet lowered nor proven.

    Attributes:
        name: text for people; unique among a model's candidates.
        subject: layers and numbers in the name, by which removals of repeated blocks are compared.
        kind: row of the removal table: ``bypass``, ``branch``, ``gate``, ``concat``, ``several``, ``shared`` or
            ``block``.
        cut: the change of the layer graph.
        dead: layers that die.
        groups: names of the groups that are taken out.
        waits: whether to use it only if no other candidate takes out the same groups.
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
    """Result of :func:`find_candidates`.

    Attributes:
        found: lists of alternative candidates; the first one of a list that can be lowered is used.
        critical: group name → why it must stay.
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
        modules: the model's modules by name; only containers are used.
        protect: patterns of dotted names (``fnmatch``); matching modules and all below them stay.
        protect_io: whether stem and head stay; see :func:`stem_and_head`.
        granularity: ``group`` for any removal, ``branch`` for branches, gates and concat operands, ``block`` for
            elements of ``Sequential`` and ``ModuleList`` only.

    Raises:
        UnknownNameError: a pattern in ``protect`` matches nothing; the message lists the groups.
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
        self.partial: list[tuple[str, Cut, frozenset[int]]] = []  # cuts that take out some calls of a group only

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
        """Make a candidate of a new cut that takes a whole group out; the subject completes its name."""
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
            name=name.format(*subject), subject=subject, kind=kind, cut=cut, dead=dead, groups=tuple(gone), waits=waits
        )

    # ---- rows of the removal table --------------------------------------------------------------------------------

    def merges(self) -> Iterator[Candidate | None]:
        """Drop one operand of a sum, a product or a concat."""
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
        """Drop a tensor, or pieces of it, from every merge that reads it, if only merges read it."""
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
        return any(self.graph.layers[r].kind == "split" and len(self.graph.layers[r].outputs) > 1 for r in readers)

    def pieces(self, value: int) -> set[int]:
        """A value, its pieces, and values made of these alone."""
        found, pending = {value}, [value]
        while pending:
            for reader in self.graph.readers.get(pending.pop(), ()):
                layer = self.graph.layers[reader]
                if layer.kind in _CUTTING and not layer.params and self.graph.read_by(reader) <= found:
                    pending += {*layer.outputs} - found
                    found |= {*layer.outputs}
        return found if found.isdisjoint(self.graph.outputs) else {value}

    def blocks(self) -> Iterator[Candidate | None]:
        """Substitute all results of a container's element by its arguments."""
        for element in elements(self.graph, self.modules):
            name = _call_name(element.frame.fqn, element.frame.call)
            plural = "s" if len(element.cut.substitutes) > 1 else ""
            yield self.candidate("block", element.cut, "{} by its input{}", name, plural)

    def shared(self) -> Iterator[Candidate | None]:
        """Take a module with several calls out at every call, each by the smallest cut.

        First with the whole branches of its calls, then by any smaller cut.
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
        for group in reversed(self.groups):  # because an earlier group may take later ones out
            if len(group.calls) < 2 or not all(call in ways for call in group.calls):
                continue
            cuts = [ways[call][0] for call in group.calls]
            substitutes = {y: s for cut in cuts for y, s in cut.substitutes.items()}
            if all(substitutes[y] == s for cut in cuts for y, s in cut.substitutes.items()):
                joint = Cut(substitutes, frozenset(pair for cut in cuts for pair in cut.dropped))
                name = "{} {} at all its {} calls"
                yield self.candidate("shared", joint, name, group.name, how, len(group.calls), waits=waits)

    def bypasses(self) -> Iterator[tuple[Candidate, ...]]:
        """Replace a layer's value by the nearest dominating tensor of its shape; a group's last value first."""
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
        """Whether a transform reaches the output through a value only; else no substitute takes one out."""
        return self.graph.kills_any(Cut({value: self.graph.inputs[0]}), self.leads)  # no substitute kills more

    # ---- predicates -----------------------------------------------------------------------------------------------

    def live_layers(self) -> Iterator[Layer]:
        for layer in self.graph.layers:
            if layer.index in self.graph.live and not layer.param_only and layer.outputs:
                yield layer

    def keepable(self, layer: Layer) -> list[int]:
        """Operands of a merge with its result's shape and dtype, each of which could replace the result."""
        reads = [read[0] for read in layer.operands if len(read) == 1]
        if traits_of(layer.function or layer.functions[0]).is_left_only:
            reads = [read[0] for read in layer.operands[:1] if len(read) == 1]
        whole = [v for v in dict.fromkeys(reads) if self.alike(v, layer.outputs[0])]
        return whole if len(layer.operands) > 1 and len(set(layer.operands)) > 1 else []

    def alike(self, one: int, other: int) -> bool:
        return alike(self.graph, one, other)


def key_of(cut: Cut) -> tuple[object, ...]:
    """A hashable key of a cut, unique within a model."""
    return tuple(sorted(cut.substitutes.items())), tuple(sorted(cut.dropped))


def merge_kind(layer: Layer) -> str:
    """The merge that a layer is (``add``, ``mul``, ``cat``); empty for other layers and single operands."""
    name = layer.function or (layer.functions[0] if len(layer.functions) == 1 else "")
    kind = traits_of(name).merge
    return kind if kind in ("add", "mul", "cat") and len(layer.operands) > 1 else ""


def _call_name(fqn: str, call: int) -> str:
    return fqn if call == 0 else f"{fqn}#{call}"


# ---- why a group has no candidate -------------------------------------------------------------------------------


def why_not(graph: LayerGraph, group: Group) -> Refusal:
    """The reason why no substitution takes a group out, by the shapes around it."""
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
