"""The methods of a pruner that show what it found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING

from torch import nn

from layerprune.capture import Batch
from layerprune.discovery import Discovery
from layerprune.environment import holding_process_lock
from layerprune.errors import ReportError
from layerprune.fitting import ProjectionReport
from layerprune.graph import Group, LayerGraph
from layerprune.overview.overview import Overview
from layerprune.plan import PlanGiven, PruningPlan, plan_of
from layerprune.planner import Planner
from layerprune.proof import with_reasons
from layerprune.repair import RepairReport
from layerprune.report import (
    MEASURED,
    PLAN_COLOURS,
    ImpactBar,
    PlotPoint,
    draw_frontier,
    draw_impacts,
    groups_table,
    plan_text,
    terminal_width,
)
from layerprune.scoring import Scored
from layerprune.tables import ShownAsTable, Table, amount_text, brief, print_coloured, short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@holding_process_lock(but=("as_table",))
class PlanDisplay(ShownAsTable, ABC):
    """Shows the groups and the plans of a pruner; the subclass has them.

    Attributes:
        graph: the layer graph.
        repair_report: the layers that were repaired last; None where none were.
        projection_report: the projections that were fitted last; None where there were none.
    """

    graph: LayerGraph
    repair_report: RepairReport | None
    projection_report: ProjectionReport | None
    _original: nn.Module
    _batches: tuple[Batch, ...] | None
    _found: Discovery
    _pruned_by: list[PruningPlan]
    _latest: PruningPlan | None

    @cached_property
    @abstractmethod
    def _planner(self) -> Planner:
        """The planner, which has the groups and the removals; impacts are measured on first use."""

    @property
    @abstractmethod
    def notes(self) -> list[str]:
        """Remarks for the user."""

    @cached_property
    def _overview(self) -> Overview:
        return Overview(self._planner, self.notes)

    # ---- text -----------------------------------------------------------------------------------------------------

    def render_plan(self, *, full: bool = False, width: int | None = None) -> str:
        """Return the possible removals as text: a summary first, then all groups with their verdicts, and the sums.

        Args:
            full: show each group of repeated blocks, not one for all that are alike.
            width: largest line width in characters; the terminal's if None, 80 without a terminal.
        """
        return self._overview.text(full=full, width=width or terminal_width())

    def print_plan(self, plan: PlanGiven | None = None, *, full: bool = False, width: int | None = None) -> None:
        """Print the text of :meth:`render_plan`; with a plan, also the groups that leave and those that stay.

        On a terminal verdicts, impacts and headings have colours; ``NO_COLOR`` in the environment switches them off.
        """
        text = self.render_plan(full=full, width=width)
        if plan is not None:
            done = self._pruned_by[-1:] == [chosen := plan_of(plan)] and (self.repair_report or self.projection_report)
            text += f"\n\n{plan_text(chosen, done.verdict if done else None, width=width or terminal_width())}"
        print_coloured(text, PLAN_COLOURS)

    # ---- pictures -------------------------------------------------------------------------------------------------

    def plot_frontier(self, ax: Axes | None = None, plan: PlanGiven | None = None) -> Axes:
        """Draw the least sum of impacts for every size, a prediction, with the sets of a plan marked.

        Args:
            ax: matplotlib axes to draw on; new ones if None.
            plan: a plan to mark; the one made last if None.

        Returns:
            The axes; nothing is shown before ``matplotlib.pyplot.show()``, which notebooks call themselves.

        Raises:
            ReportError: matplotlib is not installed, or the impacts are not known.
        """
        points, unit = self._planner.frontier, self._planner.scored.unit
        if not points:
            raise ReportError(f"there is no frontier to draw: {self._why_no_impacts}")
        chosen, marks = self._plan_of(plan), list[PlotPoint]()
        if chosen is not None and chosen.removals:
            impacts = [removal.impact for removal in chosen.removals]
            if None not in impacts:
                marks.append(
                    PlotPoint(chosen.reduction, sum(i or 0.0 for i in impacts), "the plan, sum of its impacts")
                )
            if chosen.impact_together is not None:
                marks.append(PlotPoint(chosen.reduction, chosen.impact_together, "the plan, measured", MEASURED))
        return draw_frontier(points, unit, marks, f"{type(self._original).__name__}: what each size costs", ax)

    def plot_impact(self, ax: Axes | None = None, plan: PlanGiven | None = None, *, num: int = 30) -> Axes:
        """Draw the impact of each removable group, least first, with its interval where it has one.

        Args:
            ax: matplotlib axes to draw on; new ones if None.
            plan: a plan whose groups are marked; the one made last if None.
            num: the number of groups drawn, at most.

        Returns:
            The axes; nothing is shown before ``matplotlib.pyplot.show()``, which notebooks call themselves.

        Raises:
            ReportError: matplotlib is not installed, or the impacts are not known.
        """
        overview, chosen = self._overview, self._plan_of(plan)
        leaving = set[str]() if chosen is None else {name for each in chosen.removals for name in each.groups}
        bars = [
            ImpactBar(
                group.name, group.impact, overview.intervals.get(overview.best(group.name).name), group.name in leaving
            )
            for group in overview.groups
            if group.can_remove and isfinite(group.impact)
        ]
        if not bars:
            raise ReportError(f"there are no impacts to draw: {self._why_no_impacts}")
        shown = "" if len(bars) <= num else f", the {num} of least impact of {len(bars)}"
        title = f"{type(self._original).__name__}: impact of each group{shown}"
        return draw_impacts(bars[:num], self._planner.scored.unit, title, ax)

    def _plan_of(self, plan: PlanGiven | None) -> PruningPlan | None:
        return self._latest if plan is None else plan_of(plan)

    @property
    def _why_no_impacts(self) -> str:
        scored = self._planner.scored
        return "no group can be removed" if not scored.removals else f"impacts are {scored.unit}"

    # ---- notebooks ------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        groups, scored = self._known_groups, self._known_scores
        found = sum(group.can_remove for group in groups)
        unknown = ", impacts not measured" if scored is None else ", impacts unknown"
        known = scored is not None and scored.evidence is not None
        pruned = f", pruned {_times(len(self._pruned_by))}" if self._pruned_by else ""
        size = f"{short_number(self.graph.num_params)} parameters, {found} of {len(groups)} groups removable"
        return brief(self, f"{type(self._original).__name__}: {size}{'' if known else unknown}{pruned}")

    def as_table(self) -> Table:
        """The groups of least impact with their verdicts, without any work: impacts show once they are measured."""
        groups, scored, total = self._known_groups, self._known_scores, self.graph.num_params
        count = Counter("untried" if group.name in self._untried else group.verdict for group in groups)
        said = f"{count['removable']} safe to remove now, {count['with_calibration']} with calibration data"
        untried = f", {count['untried']} not tried yet" if count["untried"] else ""
        facts = [
            ("Groups", f"{len(groups)} ({said}, {count['critical']} critical{untried})"),
            ("Impact", "not measured yet; print_plan() measures" if scored is None else scored.unit),
        ]
        overview = vars(self).get("_overview")
        if isinstance(overview, Overview) and "offer_of_all" in vars(overview):
            up_to = "up to " if overview.most is None else ""
            facts.append(("Can leave now, together", up_to + amount_text(overview.offer_of_all.num_params, total)))
        title = f"{type(self._original).__name__}: {total:,} parameters"
        return groups_table(groups, title, facts, total, self._untried)

    @property
    def _known_scores(self) -> Scored | None:
        """The removals with their impacts; None as long as nobody asked for them."""
        return vars(self).get("_scored")

    @property
    def _known_groups(self) -> list[Group]:
        """The groups with what is known of them; nothing is run for it."""
        planner, found, scored = vars(self).get("_planner"), self._found, self._known_scores
        if isinstance(planner, Planner) and "groups" in vars(planner):
            return list(planner.groups)
        removals = found.removals if scored is None else scored.removals
        return with_reasons(found.groups, removals, (), {name: [why] for name, why in found.critical.items()})

    @property
    def _untried(self) -> Collection[str]:
        """Names of the groups whose projections nobody asked for, so that their verdict is not known yet."""
        return () if "projections" in vars(self._found) else self._found.without_removal


def _times(num: int) -> str:
    return "once" if num == 1 else f"{num} times"
