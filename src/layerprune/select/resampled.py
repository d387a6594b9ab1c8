"""Resampled: what calibration data drawn anew would choose, and what comes next; the one that does least is taken."""

from __future__ import annotations

from collections.abc import Sequence

from layerprune.select.ban import Ban
from layerprune.select.exact import exact
from layerprune.select.problem import with_unknown
from layerprune.select.search import Search

_DRAWS = 20
_FEWEST = 5
_RUNNERS_UP = 8
_WORK = 4000  # draws times removals: large programmes take seconds each


def resampled(search: Search) -> tuple[int, ...] | None:
    """Choose exactly for the impacts as measured and as other draws of the same data have them; then make each choice.

    Impacts add up only roughly, and sets whose sums hardly differ do differ when they are made. So the sets that come
    out of the draws are made, each once, and those that come next by the sum; the one that harms least is taken.

    Args:
        search: the problem; with ``harm``, and with ``resampled`` for the draws; else this is the exact choice.

    Returns:
        A proven set within the budgets; None where there is none.
    """
    first = exact(search)
    if first is None or search.problem.harm is None:
        return first
    others = [some for some in dict.fromkeys([*choices(search), *runners_up(search, first)]) if some and some != first]
    found = [first, *(some for some in others if search.is_valid(some))]
    if len(found) == 1:
        return first
    best = search.best(found)
    search.notes.append(
        f"{len(found)} sets of about the least sum of impacts were made; the one that harms least is taken"
    )
    return found[best]


def runners_up(search: Search, first: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The sets that come after the exact choice by the sum of impacts, none of them proven."""
    found = [first]
    for _ in range(_RUNNERS_UP):
        bans = [*search.bans, *map(Ban.of, found)]
        chosen = tuple(sorted(search.programme.least(search.problem.impacts, search.limits, bans)))
        if not chosen:
            break
        found.append(chosen)
    return found[1:]


def choices(search: Search) -> list[tuple[int, ...]]:
    """What the exact programme chooses for each draw of the calibration data, none of it proven."""
    num = max(_FEWEST, min(_DRAWS, _WORK // max(len(search.problem.removals), 1)))
    return [
        tuple(sorted(search.programme.least(with_unknown(impacts), search.limits, search.bans)))
        for impacts in search.drawn(num)
    ]


def recurrence(search: Search, chosen: Sequence[int]) -> tuple[float, ...]:
    """How often each removal of a choice is chosen again for the draws; empty where there are none."""
    again = choices(search)
    return tuple(sum(i in some for some in again) / len(again) for i in chosen) if again else ()
