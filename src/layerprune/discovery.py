"""Finds the groups of a model and proves the removals that take them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from layerprune.capture import Sandbox
from layerprune.environment import showing_progress
from layerprune.graph import Group, LayerGraph, Refusal, form_groups
from layerprune.inputs import Inputs
from layerprune.proof import Prover, Removal, why_critical
from layerprune.removals import find_candidates, find_projections, without_argument


@dataclass(frozen=True)
class ProjectionProofs:
    """The projections of a model.

    Attributes:
        removals: the proven ones, without impacts.
        obstacles: group name → why no projection takes it out.
    """

    removals: Sequence[Removal] = ()
    obstacles: Mapping[str, Refusal] = field(default_factory=dict[str, Refusal])


class Discovery:
    """The groups of a model and their removals; projections are found and proven on first use.

    Args:
        sandbox: a copy of the model to prove on.
        graph: the model's layer graph.
        inputs: the example inputs.
        protect: patterns of dotted names that stay.
        protect_io: whether stem and head stay.
        granularity: ``group``, ``branch`` or ``block``.
        projections: whether to try projections for the groups without another removal.
        renumber: whether elements leave the containers of any model, not only of transformers models.
        progress: whether to show a bar while removals are proven; None: only if standard error is a terminal.

    Attributes:
        groups: in order of execution, without verdicts.
        prover: proves further sets of removals.
        removals: the proven removals that need no calibration data, without impacts.
        critical: group name → why it stays whatever is tried.
        without_removal: names of the groups that a projection may take out, and no other removal does.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        graph: LayerGraph,
        inputs: Inputs,
        *,
        protect: Iterable[str],
        protect_io: bool,
        granularity: str,
        projections: bool,
        renumber: bool,
        progress: bool | None = None,
    ) -> None:
        self.graph = graph
        self.groups: Sequence[Group] = form_groups(graph)
        self.prover = Prover(sandbox, graph, inputs, whole_layers=granularity == "block", renumber=renumber)
        candidates = find_candidates(
            graph, self.groups, self.prover.modules, protect=protect, protect_io=protect_io, granularity=granularity
        )
        self._granularity, self._progress = granularity, progress
        self.critical = candidates.critical
        with showing_progress(progress):
            self.removals, self._refused = self.prover.prove(candidates.found, candidates.critical)
        safe = {name for removal in self.removals for name in removal.groups}
        tries = projections and granularity == "group"
        self.without_removal = [
            g.name for g in self.groups if tries and g.name not in safe and g.name not in candidates.critical
        ]

    @cached_property
    def projections(self) -> ProjectionProofs:
        """The projections for the groups without another removal."""
        if not self.without_removal:
            return ProjectionProofs()
        modules, critical = self.prover.modules, self.critical
        found = find_projections(self.graph, self.groups, modules, self.without_removal, critical)
        with showing_progress(self._progress):
            proven, refused = self.prover.prove(found.found, critical)
        return ProjectionProofs(proven, {**found.critical, **{name: reasons[0] for name, reasons in refused.items()}})

    @cached_property
    def reasons(self) -> Mapping[str, Sequence[Refusal]]:
        """Group name → why no removal takes it out; of a group that a removal takes out it says nothing."""
        obstacles = self._halves() if self._granularity == "block" else self.projections.obstacles
        return {
            group.name: [self.critical[group.name]]
            if group.name in self.critical
            else why_critical(self.graph, group, self._refused.get(group.name, ()), obstacles.get(group.name))
            for group in self.groups
        }

    def _halves(self) -> Mapping[str, Refusal]:
        """Tell which groups lie in an element that cannot pass arguments on for all of its results, and why."""
        found = without_argument(self.graph, self.prover.modules)
        inside = {group.name: [name for name in found if group.name.startswith(f"{name}.")] for group in self.groups}
        return {group: found[max(names, key=len)] for group, names in inside.items() if names}

    @property
    def notes(self) -> list[str]:
        """Note the groups that no removal takes out without calibration data."""
        num = len(self.without_removal)
        if not num:
            return []
        groups = "1 group leaves" if num == 1 else f"{num} groups leave"
        return [
            f"{groups} by projections at most, which are fitted on calibration data: no plan takes "
            f"{'it' if num == 1 else 'them'} out without; pass calibration="
        ]
