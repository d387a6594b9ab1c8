"""The plan as text, in the form that the project began with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerprune.groups import Group, LayerInfo
from layerprune.plan import PruningPlan

SAFE = "✓ SAFE TO REMOVE"
CRITICAL = "✗ CRITICAL"


def groups_text(groups: Sequence[Group], kept: dict[str, frozenset[str]], num_params: int) -> str:
    """Render groups, one block of lines each.

    Args:
        groups: in the order in which they are shown and numbered.
        kept: group name → names of members that stay when it goes.
        num_params: the model's number of parameters, for the shares.
    """
    head = ["PRUNING GROUPS (each starting from a transform layer):", "-" * 80]
    blocks = [
        _group_lines(number, group, kept.get(group.name, frozenset()), num_params)
        for number, group in enumerate(groups)
    ]
    return "\n".join([*head, *(line for block in blocks for line in ("", *block))])


def _group_lines(number: int, group: Group, kept: frozenset[str], num_params: int) -> list[str]:
    share = group.num_params / num_params if num_params else 0.0
    lines = [
        f"Group {number}: {SAFE if group.can_remove else CRITICAL}",
        f"  Lead Transform: {group.lead_transform.name} ({group.lead_transform.type_name})",
        f"  Type: {group.type}",
        f"  Impact Score: {impact_text(group.impact)}",
        f"  Parameters: {group.num_params:,} ({share:.1%})",
        f"  Layers ({len(group.layers)}):",
    ]
    for place, layer in enumerate(group.layers):
        lines.append(f"    {'→' if place else '★'} {layer}{_mark(layer, kept)}")
    if group.reason:
        lines.append(f"  Reason: {group.reason}" if not group.can_remove else f"  Note: {group.reason}")
    return lines


def _mark(layer: LayerInfo, kept: frozenset[str]) -> str:
    return " [kept]" if layer.name in kept else ""


def impact_text(impact: float) -> str:
    """Three decimals; ``inf`` for what cannot go, ``unknown`` for what was not measured."""
    return "unknown" if math.isnan(impact) else f"{impact:.3f}"


def summary_text(
    groups: Sequence[Group], num_params: int, removable: int, impact_unit: str, notes: Sequence[str]
) -> str:
    """Render what stands below the groups: the sums, the unit of the impacts, the notes."""
    safe = sum(group.can_remove for group in groups)
    share = removable / num_params if num_params else 0.0
    lines = [
        "PRUNING SUMMARY:",
        "-" * 80,
        f"Total parameters: {num_params:,}",
        f"Groups: {len(groups)} ({safe} safe to remove, {len(groups) - safe} critical)",
        f"Parameters in safe groups: {removable:,} ({share:.1%})",
        f"Impact: {impact_unit}",
        *(f"Note: {note}" for note in notes),
    ]
    return "\n".join(lines)


def plan_text(plan: PruningPlan) -> str:
    """Render what a plan removes and how close it came to its budget."""
    lines = [
        "CHOSEN REMOVALS:",
        "-" * 80,
        *(
            f"  {r.name} [{', '.join(r.groups)}]: {r.num_params:,} parameters, impact {_or_unknown(r.impact)}"
            for r in plan.removals
        ),
        f"Parameters: {plan.num_params_before:,} → {plan.num_params_after:,} ({-plan.reduction:+.1%})",
        *(f"Note: {note}" for note in plan.notes),
    ]
    return "\n".join(lines)


def _or_unknown(impact: float | None) -> str:
    return "unknown" if impact is None else f"{impact:.3f}"
