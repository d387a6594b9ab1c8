"""The method of a pruner that writes the report page."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from layerprune.cost import Saving
from layerprune.distillation import Distillation
from layerprune.environment import holding_process_lock
from layerprune.fidelity import Fidelity
from layerprune.html import ReportData, write_page
from layerprune.overview.display import PlanDisplay
from layerprune.overview.report_contents import folder_data, report_data
from layerprune.picture import Picture
from layerprune.plan import PlanGiven, PruningPlan, plan_of


@holding_process_lock()
class PlanReport(PlanDisplay):
    """Writes the report page of a pruner.

    Attributes:
        distillation: the training of the model pruned last by :meth:`UniversalLayerPruner.distill`; None without.
    """

    distillation: Distillation | None
    _latest: PruningPlan | None
    _settings: Mapping[str, object]

    @abstractmethod
    def saving(self, plan: PlanGiven) -> Saving:
        """Measure the savings of a plan."""

    @abstractmethod
    def _check_original(self) -> None:
        """Refuse to start from a model that has changed since the pruner was made."""

    def report(
        self,
        path: str | os.PathLike[str],
        plan: PlanGiven | None = None,
        *,
        fidelity: Fidelity | None = None,
        distillation: Distillation | None = None,
        origin: str = "",
    ) -> Path:
        """Write a report as one HTML file, which needs no network.

        It shows the plan made or carried out last; before any plan, what could leave.

        Args:
            path: the file.
            plan: another plan to show.
            fidelity: the result of :func:`layerprune.compare`, to be shown.
            distillation: a training by :func:`layerprune.distill`; None for that of :attr:`distillation`.
            origin: the source of the model, such as ``timm:resnet50``, to be shown.

        Returns:
            The file.

        Raises:
            ReportError: the file cannot be written.
            PlanError: the plan was made for another model, or this one was pruned in place.
        """
        data = self.report_data(plan, fidelity=fidelity, distillation=distillation, origin=origin)
        return write_page(data, path)

    def picture(self, plan: PlanGiven | None = None) -> Picture:
        """The picture of the network, with the plan marked that was made or carried out last.

        It shows itself in a notebook. ``pruner.picture().save("network.svg")`` writes it to a file.

        Args:
            plan: another plan to mark.

        Raises:
            PlanError: the model was pruned in place.
        """
        self._check_original()
        return self._overview.picture(self._plan_of(plan))

    def report_data(
        self,
        plan: PlanGiven | None = None,
        *,
        fidelity: Fidelity | None = None,
        distillation: Distillation | None = None,
        origin: str = "",
    ) -> ReportData:
        """The contents of :meth:`report`, as a record."""
        self._check_original()
        chosen = self._latest if plan is None else plan_of(plan)
        was_carried_out = chosen is not None and self._pruned_by[-1:] == [chosen]
        done = (self.repair_report or self.projection_report) if was_carried_out else None
        return report_data(
            self._overview,
            chosen,
            None if chosen is None else self.saving(chosen),
            settings=self._settings,
            origin=origin,
            repair=self.repair_report if was_carried_out else None,
            held_out=None if done is None else done.verdict,
            fidelity=fidelity,
            distillation=distillation or (self.distillation if was_carried_out else None),
        )


def report_folder(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write the report of a folder of :func:`layerprune.save_pruned`, or of a plan's JSON file, without its model.

    Raises:
        ReportError: there is no plan, or the file cannot be written.
        PlanError: the plan cannot be read, or the folder holds several.
        CheckpointError: the manifest is damaged.
    """
    return write_page(folder_data(Path(folder)), path)
