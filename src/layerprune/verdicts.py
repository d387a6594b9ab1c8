"""Verdicts: what the proven removals say of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan

from layerprune.groups import Group
from layerprune.proof import Removal


def by_impact(removal: Removal) -> tuple[bool, bool, float, int, str]:
    """Sort key: the least impact first, those that are not known last, and of these what needs data last."""
    unknown = isnan(removal.impact)
    impact = 0.0 if unknown else removal.impact
    return unknown, unknown and removal.needs_calibration, impact, removal.num_params, removal.name


def with_reasons(groups: Sequence[Group], removals: Sequence[Removal], reasons: Mapping[str, str]) -> list[Group]:
    """Give each group its verdict, its least impact and its reason, sorted by impact, critical ones last."""
    judged: list[Group] = []
    for group in groups:
        ways = [r for r in removals if group.name in r.groups]
        if not ways:
            judged.append(replace(group, can_remove=False, impact=float("inf"), reason=reasons.get(group.name, "")))
            continue
        best = min(ways, key=by_impact)
        others = [f"'{name}'" for name in best.groups if name != group.name]
        reason = f"leaves together with {', '.join(others)}" if others else ""
        fitted = all(r.needs_calibration for r in ways)
        judged.append(replace(group, can_remove=True, impact=best.impact, reason=reason, needs_calibration=fitted))
    return sorted(judged, key=lambda g: (not g.can_remove, isnan(g.impact), g.impact))
