"""The methods of a pruner that show what it found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

from layerprune.environment import holding_process_lock
from layerprune.fitting import ProjectionReport
from layerprune.overview.overview import Overview
from layerprune.plan import PlanGiven, PruningPlan, plan_of
from layerprune.planner import Planner
from layerprune.repair import RepairReport
from layerprune.report import plan_text, terminal_width


@holding_process_lock()
class PlanDisplay(ABC):
    """Shows the groups and the plans of a pruner; the subclass has them.

    Attributes:
        repair_report: the layers that were repaired last; None where none were.
        projection_report: the projections that were fitted last; None where there were none.
    """

    repair_report: RepairReport | None
    projection_report: ProjectionReport | None
    _pruned_by: list[PruningPlan]

    @cached_property
    @abstractmethod
    def _planner(self) -> Planner:
        """The planner, which has the groups and the removals; impacts are measured on first use."""

    @property
    @abstractmethod
    def notes(self) -> list[str]:
        """Remarks for the user."""

    def render_plan(self, *, full: bool = False, width: int | None = None) -> str:
        """Return the possible removals as text: ten lines first, then all groups with their verdicts, and the sums.

        Args:
            full: show each group of repeated blocks, not one for all that are alike.
            width: largest line width in characters; the terminal's if None, 80 without a terminal.
        """
        return Overview(self._planner, self.notes).text(full=full, width=width or terminal_width())

    def print_plan(self, plan: PlanGiven | None = None, *, full: bool = False, width: int | None = None) -> None:
        """Print the text of :meth:`render_plan`; with a plan, also the groups that leave and those that stay."""
        print(self.render_plan(full=full, width=width))
        if plan is not None:
            done = self._pruned_by[-1:] == [chosen := plan_of(plan)] and (self.repair_report or self.projection_report)
            print(f"\n{plan_text(chosen, done.verdict if done else None, width=width or terminal_width())}")
