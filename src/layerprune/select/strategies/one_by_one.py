"""Adds removals one by one, where too many sets fail together."""

from __future__ import annotations

from layerprune.select.constraints import amount
from layerprune.select.search import Search


def one_by_one(search: Search) -> tuple[int, ...] | None:
    """Take removals by impact per what they bring for as long as they hold together and fit."""
    aim, impacts = search.aim, search.problem.impacts
    order = sorted(range(len(impacts)), key=lambda i: impacts[i] / max(amount(aim, (i,)), 1e-30))
    held: tuple[int, ...] = ()
    for entry in order:
        if held and not search.is_filling and search.meets_targets(held):
            break
        some = tuple(sorted((*held, entry)))
        if amount(aim, some) > amount(aim, held) and search.is_proven(some) and search.is_below_caps(some):
            held = some
    return held if held and search.meets_targets(held) else None
