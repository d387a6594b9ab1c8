"""Collects the contents of the printed plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isnan

from layerprune.errors import CostError
from layerprune.graph import Group
from layerprune.inputs import describe
from layerprune.picture import Picture, picture_of
from layerprune.plan import FrontierPoint, PruningPlan
from layerprune.planner import Planner
from layerprune.proof import Removal, by_impact
from layerprune.report import (
    NUM_REMOVALS,
    SHARES,
    WIDTH,
    Facts,
    Interval,
    Offer,
    Screen,
    Totals,
    groups_text,
    screen_lines,
    summary_text,
)
from layerprune.select import Limit, Milp, Pieces, Search, alone, amount, exclusions_of

_GAP = 0.05  # relative gap of predicted impacts: closing it takes seconds in dense graphs
_ROUNDS = 10  # sets to prove at most, for the largest removal


class Overview:
    """Facts for the printed plan; each part is computed on first use.

    Args:
        planner: has the groups, the removals with their impacts, and their savings.
        notes: remarks for the user.
    """

    def __init__(self, planner: Planner, notes: Sequence[str]) -> None:
        self.planner = planner
        self.notes = notes
        self.graph = planner.graph
        self.groups: Sequence[Group] = planner.groups
        self.ways = _by_group(planner.scored.removals)
        self.later = _by_group(planner.unfitted)

    def text(self, *, full: bool = False, width: int = WIDTH) -> str:
        """The first screen, then the groups with their verdicts and prices, and the sums.

        Args:
            full: show each group of repeated blocks.
            width: largest line width in characters.
        """
        facts = {group.name: self.facts(group) for group in self.groups if group.verdict != "critical"}
        most, predicted, unit = self.offer_of_all.num_params, self.most is None, self.planner.scored.unit
        parts = [
            "\n".join(screen_lines(self.screen, width)),
            groups_text(self.groups, facts, self.totals, width=width, full=full),
            summary_text(self.groups, self.totals, most, predicted, unit, self.notes, width=width),
        ]
        return "\n\n".join(parts)

    @property
    def screen(self) -> Screen:
        inputs = self.planner.meter.inputs
        return Screen(
            model=type(self.planner.model).__name__,
            inputs=describe(inputs),
            totals=self.totals,
            most=self.offer_of_all,
            is_predicted=self.most is None,
            cheapest=self.cheapest,
            costs=self.costs,
            calibration=self.calibration,
            macs_costs=self.macs_costs,
            latency_ms=self.planner.meter.known_latency,
            impact_unit=self.planner.scored.unit,
        )

    @cached_property
    def totals(self) -> Totals:
        try:
            return Totals(self.graph.num_params, self.planner.meter.layer_tally[1])
        except CostError:
            return Totals(self.graph.num_params)

    def picture(self, plan: PruningPlan | None) -> Picture:
        """The picture of the network; the groups of a plan are marked."""
        model = self.planner.model
        return picture_of(
            self.graph,
            self.groups,
            plan,
            model=type(model).__name__,
            types={name: type(module).__name__ for name, module in model.named_modules()},
            impact_unit=self.planner.scored.unit,
        )

    def facts(self, group: Group) -> Facts:
        best = self.best(group.name)
        sizes = {each.name: each.num_params for each in self.groups}
        by_name = alone(group.name, self.ways[group.name], sizes) if group.can_remove else best
        members = zip(group.layers, (group.calls[0], *(i for i in group.members if i != group.calls[0])), strict=True)
        return Facts(
            kept=frozenset(info.name for info, index in members if index not in best.dead),
            interval=self.intervals.get(best.name),
            macs=self.macs(best),
            by_name=by_name if set(by_name.groups) != set(best.groups) else None,
        )

    def macs(self, removal: Removal) -> float | None:
        """Number of multiply-accumulates that a removal saves; None where they could not be counted."""
        return None if self.totals.macs is None else self.planner.meter.macs_taken(removal.lowering)

    def best(self, name: str) -> Removal:
        """The least-impact removal that takes a group out."""
        return min(self.ways.get(name) or self.later[name], key=by_impact)

    @cached_property
    def intervals(self) -> Mapping[str, Interval]:
        """Removal → the interval of its impact."""
        return {r.name: self.planner.interval(number) for number, r in enumerate(self.planner.scored.removals)}

    @cached_property
    def _search(self) -> Search:
        search = Search(self.planner.problem(()))
        search.rounds = _ROUNDS
        return search

    @cached_property
    def most(self) -> tuple[int, ...] | None:
        """The set of removals that takes the most parameters, proven; None where none was proven within few rounds."""
        if not self.planner.scored.removals:
            return ()
        pieces, search = self.planner.meter.param_pieces, self._search
        return search.first_valid(lambda limits, bans: search.programme.most(pieces, limits, bans))

    @cached_property
    def offer_of_all(self) -> Offer:
        """The largest removal: proven, else estimated from the layer graph."""
        meter, joints, chosen = self.planner.meter, self.planner.joints, self.most
        has_macs = self.totals.macs is not None
        if chosen is not None:
            macs = meter.macs_taken(joints.proven(chosen)) if chosen and has_macs else None
            return Offer(self._groups_of(chosen), joints.num_params(chosen), macs)
        chosen = tuple(self._search.programme.most(meter.param_pieces, [], self._search.bans))
        macs = amount(meter.macs_pieces, chosen) if has_macs else None
        return Offer(self._groups_of(chosen), round(amount(meter.param_pieces, chosen)), macs)

    def _groups_of(self, chosen: Sequence[int]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for i in chosen for name in self.planner.scored.removals[i].groups))

    @cached_property
    def cheapest(self) -> list[Offer]:
        """The removals of least impact, each of other groups."""
        found: dict[frozenset[str], Removal] = {}
        for removal in sorted(self.planner.scored.removals, key=by_impact):
            found.setdefault(frozenset(removal.groups), removal)
        return [Offer(r.groups, r.num_params, self.macs(r), r.impact) for r in list(found.values())[:NUM_REMOVALS]]

    @cached_property
    def costs(self) -> list[FrontierPoint | None]:
        """The least sum of impacts that removes certain shares, predicted, to a relative gap of :data:`_GAP`."""
        found = self._least(self.planner.meter.param_pieces, self.graph.num_params)
        return [None if point is None else FrontierPoint(reduction=point[0], impact=point[1]) for point in found]

    @cached_property
    def macs_costs(self) -> list[tuple[float, float] | None]:
        """The same for shares of the MACs, as (share, impact); empty where they could not be counted."""
        return [] if not self.totals.macs else self._least(self.planner.meter.macs_pieces, self.totals.macs)

    def _least(self, pieces: Pieces, total: float) -> list[tuple[float, float] | None]:
        removals = self.planner.scored.removals
        if all(isnan(removal.impact) for removal in removals):
            return []
        impacts, found = self._search.problem.impacts, list[tuple[float, float] | None]()
        for share in SHARES:
            chosen = self._search.programme.least(impacts, [Limit(pieces, low=share * total)], self._search.bans, _GAP)
            size = amount(pieces, chosen) / max(total, 1)
            found.append((size, sum(removals[i].impact for i in chosen)) if chosen else None)
        return found

    @cached_property
    def calibration(self) -> str:
        """The removals that calibration data would open, or have opened."""
        scored = self.planner.scored
        if scored.has_data:
            num = sum(group.can_remove and group.needs_calibration for group in self.groups)
            return f"Calibration data opened {_count(num)}, by projections that are fitted on them"
        num = sum(group.verdict == "with_calibration" for group in self.groups)
        if not num:
            return "Calibration data would open no other group"
        everything = [*scored.removals, *self.planner.unfitted]
        pieces = self.planner.meter.of(everything).param_pieces
        chosen = Milp(len(everything)).most(pieces, [], exclusions_of(self.graph, everything))
        share = amount(pieces, chosen) / max(self.graph.num_params, 1)
        return f"Calibration data would open {_count(num)}: up to {share:.1%} could leave"


def _count(num: int) -> str:
    return f"{num} more {'group' if num == 1 else 'groups'}"


def _by_group(removals: Sequence[Removal]) -> dict[str, list[Removal]]:
    found: dict[str, list[Removal]] = {}
    for removal in removals:
        for name in removal.groups:
            found.setdefault(name, []).append(removal)
    return found
