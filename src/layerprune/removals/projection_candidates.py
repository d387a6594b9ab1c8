"""Candidates whose substitute has other channels or another size, and needs a fitted projection.

A tensor ``y`` is replaced by a projection of an earlier tensor ``x``. The projection is fitted to ``y`` on calibration
data and folded into every transform that reads ``y``. So groups that change channels or resolution can be removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import nn

from layerprune.channels import FoldTrace, reader_at, reader_for
from layerprune.graph import Cut, Group, LayerGraph, Refusal, RefusalCode
from layerprune.removals.candidates import Candidate, Candidates

_POINTS = 8  # tensors behind a group to try as y, nearest first
_SOURCES = 4  # tensors before it to try as x, for each y
_ALTERNATIVES = 3  # candidates of a group for the proof
_LOOK_BACK = 400
_KEPT = frozenset({"pooling", "dropout", "reshape"})  # kinds of layers that can stay and run on the substitute
_KEPT_IF_NEED_BE = _KEPT | {"activation"}  # because an activation called as a function cannot be left out


def find_projections(
    graph: LayerGraph,
    groups: Sequence[Group],
    modules: Mapping[str, nn.Module],
    wanted: Collection[str],
    critical: Collection[str],
) -> Candidates:
    """Find projections for groups without another removal, first those that take out the fewest other groups.

    Args:
        graph: the layer graph.
        groups: all groups.
        modules: the model's modules by name.
        wanted: names of the groups to take out.
        critical: names of the groups that must stay.

    Returns:
        A list of alternatives for each group that has any, and known reasons for the other groups.
    """
    finder = _Finder(graph, groups, modules, critical) if wanted else None
    found: dict[tuple[int, int], tuple[Candidate, ...]] = {}
    reasons: dict[str, Refusal] = {}
    for group in groups:
        if finder is None or group.name not in wanted or len(group.calls) > 1:
            continue
        finder.reason = None
        nearest = {(c.groups, c.cut.projected): c for c in reversed(list(finder.candidates(group)))}
        candidates = sorted(reversed(nearest.values()), key=finder.rank)[:_ALTERNATIVES]
        if candidates:
            found.setdefault(next(iter(candidates[0].cut.substitutes.items())), tuple(candidates))
        elif finder.reason is not None:
            reasons[group.name] = Refusal(RefusalCode.NO_PROJECTION, why=finder.reason)
    return Candidates(tuple(found.values()), reasons)


class _Finder:
    def __init__(
        self, graph: LayerGraph, groups: Sequence[Group], modules: Mapping[str, nn.Module], critical: Collection[str]
    ) -> None:
        self.graph = graph
        self.modules = modules
        self.critical = critical
        self.leads = {call: group for group in groups for call in group.calls}
        self.ranks: dict[int, int] = {}
        self.refused: dict[int, Refusal] = {}
        self.points = self.points_by_layer()
        self.reason: Refusal | None = None

    def points_by_layer(self) -> dict[int, list[int]]:
        """Layer → its values that foldable transforms read, directly or behind layers that can stay."""
        found: dict[int, list[int]] = {}
        for layer in self.graph.layers:
            if layer.kind != "transform" or layer.index not in self.graph.live or layer.param_only:
                continue
            try:
                reader_at(self.modules, layer)
            except Refusal as why:
                self.refused[layer.index] = Refusal(RefusalCode.READER_CANNOT, layer.name, why=why)
                continue
            if len(layer.operands[0]) != 1:
                continue
            value = layer.operands[0][0]
            above = self.above(value, _KEPT)  # because pooling loses less than subsampling
            for rank, point in enumerate((above, value, self.above(above, _KEPT_IF_NEED_BE))):
                known = found.setdefault(self.graph.values[point].layer, [])
                known += [point] if point not in known else []
                self.ranks[point] = min(rank, self.ranks.get(point, rank))
        return found

    def above(self, value: int, kinds: Collection[str]) -> int:
        """The value that a value is made of by layers of these kinds with a single operand."""
        while (source := self.graph.values[value].layer) >= 0 and self.graph.layers[source].kind in kinds:
            data = [read for read in self.graph.layers[source].operands if read]
            if len(data) != 1 or len(data[0]) != 1:
                break
            value = data[0][0]
        return value

    def rank(self, candidate: Candidate) -> tuple[int, int]:
        """Sort key: first by the number of groups, then by the rank of the replaced value."""
        return len(candidate.groups), min(self.ranks[point] for point in candidate.cut.projected)

    def candidates(self, group: Group) -> Iterator[Candidate]:
        """Projections from tensors before a group to tensors on every path behind it."""
        lead = group.calls[0]
        num = 0
        node = lead
        refused: Refusal | None = None
        while node is not None and node != "out" and num < _POINTS:
            for point in self.points.get(node, ()):
                num += 1
                yield from self.at(group, point)
            refused = refused or (None if node == lead else self.refused.get(node))
            node = self.graph.post_dominator.get(node)
        if not num:
            self.reason = refused or Refusal(RefusalCode.READ_BY_NO_TRANSFORM)

    def at(self, group: Group, point: int) -> Iterator[Candidate]:
        num = 0
        for looked, dominator in enumerate(self.graph.dominating(self.graph.values[point].layer)):
            if looked > _LOOK_BACK or num >= _SOURCES:
                return
            if dominator >= group.calls[0]:
                continue
            for source in self.graph.layers[dominator].outputs if dominator >= 0 else self.graph.inputs:
                if self.comparable(source, point):
                    num += 1
                    candidate = self.candidate(group, point, source)
                    if candidate is not None:
                        yield candidate

    def comparable(self, source: int, point: int) -> bool:
        """Whether a projection is possible between two tensors; tensors of equal shape need none."""
        x, y = self.graph.values[source], self.graph.values[point]
        return len(x.shape) == len(y.shape) > 1 and x.shape != y.shape and x.dtype == y.dtype

    def candidate(self, group: Group, point: int, source: int) -> Candidate | None:
        cut = Cut({point: source}, projected=frozenset({point}))
        dead = self.graph.dead(cut)
        if not all(call in dead for call in group.calls):
            return None
        leaving = {self.leads[i].name: self.leads[i] for i in sorted(dead) if i in self.leads}
        gone = tuple(g.name for g in leaving.values() if all(call in dead for call in g.calls))
        kept = [name for name in gone if name in self.critical]
        try:
            if kept:
                raise Refusal(RefusalCode.KEPT_GROUP_WOULD_LEAVE, kept[0])
            folds = FoldTrace(self.graph, self.modules, cut, dead).run()
            saved = sum(self.graph.size_of_param[param] for param in self.graph.dead_params(dead))
            more = sum(reader_for(self.modules[fold.owner], fold).growth(fold.num_in) for fold in folds)
            if not folds or more >= saved:
                raise Refusal(RefusalCode.GROWS, saved=saved, growth=more)
        except Refusal as why:
            self.reason = self.reason or why.bare
            return None
        subject = self.graph.name_of(point), self.graph.name_of(source)
        name = "{} projected from {}".format(*subject)
        return Candidate(name=name, subject=subject, kind="projection", cut=cut, dead=dead, groups=gone)
