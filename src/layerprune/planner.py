"""Makes the plan, from budgets or from names of groups."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from layerprune.discovery import Discovery
from layerprune.edits import Edit, folds_of, leave_stand_ins
from layerprune.environment import progress_bar
from layerprune.errors import BudgetError, CriticalGroupError
from layerprune.fidelity import hold_out
from layerprune.graph import Group, LayerGraph, Refusal
from layerprune.impact import (
    FINAL,
    Refits,
    Rule,
    ablate,
    all_of_them,
    counted,
    first_only,
    halving,
    handicapped,
    impact_intervals,
    score_output_change,
    winner,
)
from layerprune.modules import fingerprint, structure
from layerprune.plan import FrontierPoint, PlannedRemoval, PruningPlan, json_safe
from layerprune.proof import JointRemovals, Removal, with_reasons
from layerprune.repair import ClosedFormRepair
from layerprune.report import cap_note, doubtful_choices, is_short, why_nothing
from layerprune.scoring import Scored
from layerprune.select import (
    SLACK,
    Budgets,
    Effort,
    Point,
    Problem,
    Resource,
    Resources,
    Selection,
    frontier,
    select,
)

_NOBODY_NAMED = "groups= names no group, so nothing is removed: name at least one, or give a budget"


class Planner:
    """Chooses removals and records them in a plan.

    Args:
        model: the user's model; it stays unchanged.
        graph: its layer graph.
        found: its groups and removals.
        scored: the removals with their impacts.
        joints: lowers and proves sets of removals.
        meter: measures the savings of sets.
        granularity: the pruner's.
        seed: seed of random strategies.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: LayerGraph,
        found: Discovery,
        scored: Scored,
        joints: JointRemovals,
        meter: Resources,
        granularity: str,
        seed: int,
    ) -> None:
        self.model = model
        self.graph = graph
        self.found = found
        self.scored = scored
        self.joints = joints
        self.meter = meter
        self.granularity = granularity
        self.seed = seed
        self._raced: dict[tuple[int, ...], tuple[float, float]] = {}

    @cached_property
    def unfitted(self) -> Sequence[Removal]:
        """The removals that may not be chosen: there are no data to fit their projections on."""
        return self.scored.unfitted if self.scored.has_data else self.found.projections.removals

    @cached_property
    def groups(self) -> list[Group]:
        """The groups with their verdicts, by impact."""
        return with_reasons(self.found.groups, self.scored.removals, self.unfitted, self.found.reasons)

    # ---- budgets --------------------------------------------------------------------------------------------------

    def within(self, budgets: Budgets, strategy: str, notes: Sequence[str]) -> PruningPlan:
        """Choose within budgets.

        Raises:
            BudgetError: a target is out of reach, or the strategy does not exist.
        """
        resources = self.meter.resources(budgets)
        if budgets.max_impact is not None:
            resources.append(self.capped_impact(budgets.max_impact))
        if budgets.has_target and all(resource.at_least <= 0 for resource in resources):
            selection = Selection(chosen=(), strategy=strategy, notes=("the model is within the target as it is",))
        else:
            if strategy == "resampled" and (self.scored.scene is None or not self.scored.has_data):
                raise BudgetError(
                    "strategy 'resampled' draws the calibration data anew, and there are none: make the pruner with "
                    "calibration=, an iterable of batches, or take strategy='exact'"
                )
            with progress_bar("choosing removals"):
                selection = select(self.problem(resources, strategy, budgets.slack), strategy)
        said = [*selection.notes, *self._closeness(budgets, resources, selection), *doubtful_choices(selection)]
        return self.record(selection, budgets, [*said, *notes])

    def problem(self, resources: Sequence[Resource], strategy: str = "", slack: float = SLACK) -> Problem:
        evidence = self.scored.evidence
        return Problem(
            graph=self.graph,
            removals=self.scored.removals,
            resources=resources,
            prove=self.joints.proven,
            lower_removal=self.joints.lower_removal,
            harm=self.harm if self.scored.scene is not None else None,
            pairs=self._pairs() if strategy == "quadratic" else None,
            resampled=self._drawn,
            has_data=evidence is not None and self.scored.has_data,
            seed=self.seed,
            best=self.best if self.scored.scene is not None else None,
            mended=self.mended if strategy == "repaired" and self._mender is not None else None,
            first_look=self.first_look if self.scored.scene is not None else None,
            noise=self.noise,
            effort=self.effort,
            size=self.meter.has_to_shrink,
            is_smaller=lambda some: self.joints.why_no_smaller(some) is None,
            slack=slack,
        )

    @cached_property
    def _mender(self) -> ClosedFormRepair | None:
        scene = self.scored.scene
        if scene is None or not self.scored.has_data:
            return None
        return ClosedFormRepair(self.model, hold_out(scene.batches)[0], harm=scene.harm)

    def mended(self, sets: Sequence[Sequence[int]]) -> np.ndarray:
        """Impacts of sets after repair, on data that only settings of the repair were chosen on."""
        assert self._mender is not None
        assert self.scored.scene is not None
        scene = self.scored.scene
        found: list[float] = []
        for some in sets:
            edits = self.joints.proven(some).edits
            seen = hold_out(hold_out(scene.batches)[0])[0]  # held-out data of the repair must not be fitted on
            folded = scene.fit(edits, seen) if folds_of(edits) else {}
            if not all(fold in folded for fold in folds_of(edits)):  # a projection that could not be fitted
                found.append(float("nan"))
                continue
            report, values = self._mender.mend(self.joints.without(some, folded), edits)
            left = report.after if values else report.before
            found.append(left if report.unit else float(self.harm([some])[0]))  # nothing to repair
        return np.array(found)

    def harm(self, sets: Sequence[Sequence[int]]) -> np.ndarray:
        """Measured impacts of sets; ``nan`` for sets that cannot be made."""
        return self._made(sets, all_of_them)[0]

    def first_look(self, sets: Sequence[Sequence[int]]) -> np.ndarray:
        """Measured impacts of sets on the first batch, or the first part of it."""
        return self._made(sets, first_only)[0]

    @property
    def noise(self) -> float:
        """The standard deviation of a first look, relative to its result, estimated from single removals."""
        scene, evidence = self.scored.scene, self.scored.evidence
        return 0.0 if scene is None or evidence is None else evidence.noise / scene.reuse_policy.share**0.5

    @cached_property
    def effort(self) -> Effort | None:
        """Cost of measuring; None where impacts are estimates.

        Taken before the first choice, so that later choices do not depend on earlier ones.
        """
        scene, evidence = self.scored.scene, self.scored.evidence
        if scene is None or evidence is None or not self.scored.has_data:
            return None
        spent = 0.0 if evidence.looked_at is None else float(evidence.looked_at.sum())
        return Effort(len(scene.batches), scene.reuse_policy.share, spent)

    def best(self, sets: Sequence[Sequence[int]], handicaps: np.ndarray, first: int, final: float) -> int:
        """The set of least measured impact times handicap, found by racing."""
        impacts, num_batches = self._made(sets, handicapped(halving(first, final), handicaps))
        for some, impact, num in zip(sets, impacts, num_batches, strict=True):
            self._raced[tuple(some)] = float(impact), float(num)
        return winner(counted(impacts, handicaps), num_batches)

    def _made(self, sets: Sequence[Sequence[int]], rule: Rule) -> tuple[np.ndarray, np.ndarray]:
        """Impacts of sets, ``nan`` where one cannot be made, and the number of batches measured on."""
        assert self.scored.scene is not None
        edits: dict[int, Sequence[Edit]] = {}
        for place, some in enumerate(sets):
            with suppress(Refusal):
                edits[place] = self.joints.likely(some).edits
        impacts, num_batches = np.full(len(sets), np.nan), np.zeros(len(sets))
        if edits:
            folded = [self._refits.of(each) for each in edits.values()]
            with progress_bar("measuring sets of removals") as told:
                scene = replace(self.scored.scene, progress=told)
                found = ablate(scene, list(edits.values()), rule=rule, folded=folded)
            assert found.looked_at is not None
            impacts[list(edits)], num_batches[list(edits)] = found.impacts, found.looked_at.sum(0)
        return impacts, num_batches

    @cached_property
    def _refits(self) -> Refits:
        assert self.scored.scene is not None
        return Refits(self.scored.scene, {r.edits for r in self.scored.removals if r.needs_calibration})

    def capped_impact(self, most: float) -> Resource:
        """The sum of impacts; for sets the measured impact, where impacts are measured."""
        impacts = Problem(
            graph=self.graph, removals=self.scored.removals, resources=(), prove=self.joints.proven
        ).impacts
        pieces = {(i,): float(impact) for i, impact in enumerate(impacts)}

        def measured(some: Sequence[int]) -> float:
            return float(self.harm([some])[0]) if self.is_measured else float(impacts[list(some)].sum())

        return Resource(
            name="impact",
            pieces=pieces,
            measure=measured,
            at_most=most,
            show=lambda amount: f"{amount:.3g}",
            argument="max_impact",
        )

    @cached_property
    def is_measured(self) -> bool:
        """Whether impacts are measured by making removals, so that sets can be measured alike."""
        return self.scored.evidence is not None and self.scored.evidence.is_ablation

    def _pairs(self) -> np.ndarray | None:
        """Extra impacts of pairs over the sum: the criterion's own, else estimated and scaled to it."""
        evidence, scene = self.scored.evidence, self.scored.scene
        if evidence is None or scene is None:
            raise BudgetError("strategy 'quadratic' measures pairs, and there is nothing to measure on: load the model")
        if evidence.pairs is not None:
            return evidence.pairs
        estimate = score_output_change(scene)
        if estimate.pairs is None:
            return None
        own = np.sqrt(np.maximum(estimate.impacts, 1e-30))
        scale = np.sqrt(np.maximum(evidence.impacts, 0.0)) / own
        return estimate.pairs * scale[:, None] * scale[None, :]

    # ---- names ----------------------------------------------------------------------------------------------------

    def of(self, chosen: Sequence[int], notes: Sequence[str]) -> PruningPlan:
        """Make a plan of removals that the user has named.

        Raises:
            CriticalGroupError: the set fails its proof.
        """
        if not chosen:
            return self.record(
                Selection(chosen=(), strategy="named", notes=(_NOBODY_NAMED,)), None, [_NOBODY_NAMED, *notes]
            )
        try:
            if (why := self.joints.why_no_smaller(chosen)) is not None:
                raise why
        except Refusal as error:
            names = ", ".join(f"'{name}'" for i in chosen for name in self.scored.removals[i].groups)
            raise CriticalGroupError(f"{names} cannot all be removed together: {error}") from error
        return self.record(Selection(chosen=tuple(chosen), strategy="named"), None, notes)

    # ---- the record -----------------------------------------------------------------------------------------------

    def record(self, selection: Selection, budgets: Budgets | None, notes: Sequence[str]) -> PruningPlan:
        chosen = selection.chosen
        joint = self.joints.proven(chosen) if chosen else None
        limits = Budgets() if budgets is None else budgets
        said: dict[str, Any] = {**asdict(limits), "slack": None if budgets is None else budgets.slack}
        return PruningPlan(
            model=type(self.model).__name__,
            fingerprint=fingerprint(self.model),
            structure=structure(self.model),
            **said,
            granularity=self.granularity,
            strategy=selection.strategy,
            seed=self.seed,
            removals=tuple(self._planned(place, selection) for place in range(len(chosen))),
            edits=() if joint is None else joint.edits,
            num_params_before=self.graph.num_params,
            num_params_after=self.graph.num_params - self.joints.num_params(chosen),
            figures=tuple(self.meter.figures(limits, chosen)),
            impact_unit=self.scored.unit,
            impact_together=self._together(chosen),
            frontier=self.frontier if budgets is not None and self.scored.has_data else (),
            needs_layerprune=joint is not None and leave_stand_ins(joint.edits),
            notes=(*notes, *self._company(chosen)),
            shortfall=self._shortfall(limits, selection),
        )

    @cached_property
    def frontier_sets(self) -> tuple[Point, ...]:
        """The sets of the least sum of impacts for every size; empty where impacts are not known."""
        if self.scored.evidence is None or not self.scored.removals:
            return ()
        return frontier(self.problem(()), self.meter.param_pieces)

    @property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """Sizes and sums of :attr:`frontier_sets`."""
        total = self.graph.num_params
        return tuple(FrontierPoint(reduction=point.size / total, impact=point.impact) for point in self.frontier_sets)

    @cached_property
    def _drawn(self) -> np.ndarray | None:
        """Impacts on resampled calibration batches, ``(draw, removal)``; None without such data."""
        evidence = self.scored.evidence
        return None if evidence is None or not self.scored.has_data else evidence.resampled(self.seed)

    @cached_property
    def _intervals(self) -> np.ndarray | None:
        """The interval of each impact, ``(2, removal)``; None where there is one batch, or no data."""
        evidence = self.scored.evidence
        return None if evidence is None or not self.scored.has_data else impact_intervals(evidence)

    def interval(self, removal: int) -> tuple[float, float] | None:
        if self._intervals is None:
            return None
        low, high = self._intervals[:, removal]
        return (float(low), float(high)) if np.isfinite(low) and np.isfinite(high) else None

    def _planned(self, place: int, selection: Selection) -> PlannedRemoval:
        number = selection.chosen[place]
        removal, layers = self.scored.removals[number], self.graph.layers
        members = [i for g in self.found.groups if g.name in removal.groups for i in g.members]
        return PlannedRemoval(
            name=removal.name,
            kind=removal.kind,
            groups=removal.groups,
            num_params=removal.num_params,
            impact=json_safe(removal.impact),
            impact_interval=self.interval(number),
            recurrence=selection.recurrence[place] if selection.recurrence else None,
            needs_calibration=removal.needs_calibration,
            kept=tuple(layers[i].name for i in members if i not in removal.dead),
            leftovers=tuple(layers[i].name for i in removal.lowering.leftovers),
        )

    def _together(self, chosen: Sequence[int]) -> float | None:
        """The measured impact of a whole set; None where impacts are not measured."""
        if not chosen or not self.is_measured:
            return None
        impact, num_batches = self._raced.get(tuple(chosen), (0.0, 0))
        return json_safe(impact if num_batches > FINAL - 1e-6 else float(self.harm([chosen])[0]))

    # ---- notes ----------------------------------------------------------------------------------------------------

    def _shortfall(self, budgets: Budgets, selection: Selection) -> str:
        """Tell why a plan removes less than half of what a cap allows; empty where it removes more."""
        if not selection.chosen:
            return next(iter(selection.notes), "") or why_nothing(self.groups, len(self.unfitted))
        short = [use for use in selection.cap_uses if use.argument in budgets.given and is_short(use)]
        return cap_note(short[0], budgets.slack) if short else ""

    def _closeness(self, budgets: Budgets, resources: Sequence[Resource], selection: Selection) -> list[str]:
        """Tell how close a plan comes to its caps, and the obstacle."""
        if not selection.chosen:
            return [] if selection.notes else [why_nothing(self.groups, len(self.unfitted))]
        uses = [use for use in selection.cap_uses if use.argument in budgets.given]
        found = [cap_note(use, budgets.slack) for use in uses]
        if budgets.max_impact is not None:
            reached = resources[-1].measure(selection.chosen)
            found.append(f"an impact of {reached:.3g} of {budgets.max_impact:.3g} allowed is used")
        return found

    def _company(self, chosen: Sequence[int]) -> list[str]:
        together = [self.scored.removals[i] for i in chosen if len(self.scored.removals[i].groups) > 1]
        return [f"{', '.join(r.groups)} leave together: {r.name}" for r in together]
