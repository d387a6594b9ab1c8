"""Finds the groups of a model and proves the removals that take them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from layerprune.capture import Sandbox
from layerprune.graph import Group, LayerGraph, Refusal, form_groups
from layerprune.inputs import Inputs
from layerprune.proof import Prover, Removal, why_critical
from layerprune.removals import find_candidates, find_projections, without_argument


@dataclass(frozen=True, eq=False)
class Discovery:
    """The groups of a model and their removals.

    Attributes:
        groups: in order of execution, without verdicts.
        prover: proves further sets of removals.
        removals: the proven removals, without impacts.
        reasons: group name → why no removal takes it out, for groups without one.
    """

    groups: Sequence[Group]
    prover: Prover
    removals: Sequence[Removal]
    reasons: Mapping[str, Sequence[Refusal]]


def discover(
    sandbox: Sandbox,
    graph: LayerGraph,
    inputs: Inputs,
    *,
    protect: Iterable[str],
    protect_io: bool,
    granularity: str,
    projections: bool,
    renumber: bool,
) -> Discovery:
    """Form the groups, find candidates that take them out, and prove these.

    Args:
        sandbox: a copy of the model to prove on.
        graph: the model's layer graph.
        inputs: the example inputs.
        protect: patterns of dotted names that stay.
        protect_io: whether stem and head stay.
        granularity: ``group``, ``branch`` or ``block``.
        projections: whether to try projections for the groups without another removal.
        renumber: whether elements leave the containers of any model, not only of transformers models.
    """
    formed = form_groups(graph)
    prover = Prover(sandbox, graph, inputs, whole_layers=granularity == "block", renumber=renumber)
    candidates = find_candidates(
        graph, formed, prover.modules, protect=protect, protect_io=protect_io, granularity=granularity
    )
    proven, refused = prover.prove(candidates.found, candidates.critical)
    unfoldable: Mapping[str, Refusal] = {}  # why projections, or whole elements, do not help
    if projections and granularity == "group":
        projected, unfoldable = _projections(prover, graph, formed, proven, candidates.critical)
        proven = [*proven, *projected]
    elif granularity == "block":
        unfoldable = _halves(prover, graph, formed)
    reasons = {
        group.name: [candidates.critical[group.name]]
        if group.name in candidates.critical
        else why_critical(graph, group, refused.get(group.name, ()), unfoldable.get(group.name))
        for group in formed
    }
    return Discovery(formed, prover, proven, reasons)


def _halves(prover: Prover, graph: LayerGraph, formed: Sequence[Group]) -> dict[str, Refusal]:
    """Tell which groups lie in an element that cannot pass arguments on for all of its results, and why."""
    found = without_argument(graph, prover.modules)
    inside = {group.name: [name for name in found if group.name.startswith(f"{name}.")] for group in formed}
    return {group: found[max(names, key=len)] for group, names in inside.items() if names}


def _projections(
    prover: Prover,
    graph: LayerGraph,
    formed: Sequence[Group],
    proven: Sequence[Removal],
    critical: Mapping[str, Refusal],
) -> tuple[list[Removal], Mapping[str, Refusal]]:
    """Prove projections for the groups without another removal, and tell why others have none."""
    safe = {name for removal in proven for name in removal.groups}
    left = [group.name for group in formed if group.name not in safe and group.name not in critical]
    found = find_projections(graph, formed, prover.modules, left, critical)
    projected, refused = prover.prove(found.found, critical)
    return projected, {**found.critical, **{name: reasons[0] for name, reasons in refused.items()}}
