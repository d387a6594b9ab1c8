"""Measures how much of each cap a set uses, and how much any set could use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from layerprune.select.constraints import amount
from layerprune.select.problem import CapUse, Resource
from layerprune.select.search import Search


def cap_uses(search: Search, chosen: Sequence[int]) -> tuple[CapUse, ...]:
    """Measure how much of each cap a proven set takes; solve for the most that fits only where a cap is not filled."""
    filled = [each for each in search.problem.resources if each.is_filled and each.total > 0]
    found: list[CapUse] = []
    for resource in filled:
        use = CapUse(
            resource=resource.name,
            argument=resource.argument,
            cap=resource.at_most / resource.total,
            used=_taken(search, resource, chosen),
            fits=_taken(search, resource, chosen),
            in_all=1.0,
        )
        found.append(use if use.is_near else _with_more(search, resource, use))
    near = [use.resource for use in found if use.is_near]
    return tuple(use if use.is_near or not near else replace(use, held_by=near[0]) for use in found)


def _with_more(search: Search, resource: Resource, use: CapUse) -> CapUse:
    """The same, with the most that fits and the most without budgets."""
    fullest = search.fullest()
    fits = max(use.used, _taken(search, resource, fullest) if fullest else 0.0)
    most = search.programme.most(resource.pieces, [], search.bans)
    in_all = max(fits, min(amount(resource.pieces, most) / resource.total, 1.0))
    return replace(use, fits=fits, in_all=in_all, is_proven=search.rounds > 0 and not search.programme.is_cut_short)


def _taken(search: Search, resource: Resource, chosen: Sequence[int]) -> float:
    place = next(n for n, each in enumerate(search.problem.resources) if each is resource)
    return search.measured(chosen)[place] / resource.total
