"""Adds removals in turn, if too many sets fail the proof."""

from __future__ import annotations

from layerprune.select.constraints import amount
from layerprune.select.search import Search


def one_by_one(search: Search) -> tuple[int, ...] | None:
    """Add removals in order of impact per progress towards the budget, as long as the set is proven and fits."""
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
