"""Runs a search strategy by name, and reports why no set was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from layerprune.errors import BudgetError
from layerprune.select.cap_use import cap_uses
from layerprune.select.problem import Problem, Resource, Selection
from layerprune.select.search import Search
from layerprune.select.strategies.evolution import evolution
from layerprune.select.strategies.exact import exact
from layerprune.select.strategies.greedy import greedy
from layerprune.select.strategies.one_by_one import one_by_one
from layerprune.select.strategies.quadratic import quadratic
from layerprune.select.strategies.repaired import repaired
from layerprune.select.strategies.resampled import recurrence, resampled

Strategy = Literal["auto", "exact", "quadratic", "greedy", "evolution", "resampled", "repaired"]

#: A strategy returns a proven set within the budgets, as sorted numbers of removals; None if there is none.
STRATEGIES: dict[str, Callable[[Search], tuple[int, ...] | None]] = {
    "exact": exact,
    "quadratic": quadratic,
    "greedy": greedy,
    "evolution": evolution,
    "resampled": resampled,
    "repaired": repaired,
}

#: Strategies that add impacts up and measure no set.
BY_SUMS = frozenset({"exact", "quadratic"})

_MEASURING = frozenset({"greedy", "evolution", "repaired"})


def select(problem: Problem, strategy: str = "auto") -> Selection:
    """Choose a set of removals that is proven and within the budgets.

    Args:
        problem: the removals, the budgets, and the function that proves a set.
        strategy: ``exact``, ``quadratic``, ``greedy``, ``evolution``, ``resampled``, ``repaired``, or ``auto``.

    Returns:
        The chosen set; if it is empty although there are removals, its only note says why.

    Raises:
        BudgetError: the strategy is unknown, it has no data to measure on, or no set reaches the targets.
    """
    name = _picked(problem, strategy)
    if not problem.removals:
        _refuse_targets(problem, None)
        return Selection(chosen=(), strategy=name)
    search = Search(problem)
    chosen = STRATEGIES[name](search)
    if chosen is None and search.rounds <= 0:
        chosen = one_by_one(search)
        search.notes.append("chosen one by one: too many sets of removals did not hold together")
    if search.programme.is_cut_short:
        search.notes.append("the choice is the best found in the steps allowed, not proven to be the best")
    if chosen is None:
        _refuse_targets(problem, search)
        return Selection(chosen=(), strategy=name, notes=(_too_large(problem),))
    chosen = tuple(sorted(chosen))
    said = tuple(search.notes)
    return Selection(
        chosen=chosen,
        strategy=name,
        recurrence=recurrence(search, chosen),
        notes=said,
        cap_uses=cap_uses(search, chosen),
    )


def _picked(problem: Problem, strategy: str) -> str:
    if strategy == "auto":
        has_draws = problem.resampled is not None and len(problem.resampled) > 0
        return "resampled" if problem.harm is not None and (problem.has_data or has_draws) else "exact"
    if not isinstance(strategy, str) or strategy not in STRATEGIES:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BudgetError(f"there is no strategy {strategy!r:.60}; there are auto, {', '.join(STRATEGIES)}")
    if strategy in _MEASURING and problem.harm is None:
        raise BudgetError(
            f"strategy '{strategy}' makes removals and measures them, and there is nothing to measure on: "
            "load the model to the CPU or a GPU, and pass calibration="
        )
    if strategy == "repaired" and problem.mended is None:
        raise BudgetError("strategy 'repaired' repairs what it removes, on calibration data: pass calibration=")
    return strategy


def _too_large(problem: Problem) -> str:
    """Reason why not even one removal is within the caps."""
    for resource in problem.resources:
        takes = [resource.limit.of((number,)) for number in range(len(problem.removals))]
        least = min(range(len(takes)), key=takes.__getitem__)
        if takes[least] > resource.at_most:
            takes_text, cap_text = map(resource.amount_text, (takes[least], resource.at_most))
            return (
                f"no removal is small enough for the budget: the smallest, {problem.removals[least].name}, takes "
                f"{takes_text} of the {resource.name}, the cap is {cap_text}; "
                f"raise {resource.argument} to {resource.argument_text(takes[least])} or more"
            )
    return "no removal is within all the budgets at once: raise them, or give fewer"


def _refuse_targets(problem: Problem, search: Search | None) -> None:
    """Raise :class:`BudgetError` if there are targets, with the largest amount that a set reaches for each."""
    wanted = [resource for resource in problem.resources if resource.at_least > 0]
    if not wanted:
        return
    said: list[str] = []
    for resource in wanted:
        reached = 0.0 if search is None else _most_of(search, resource)
        asked, best = resource.show(resource.at_least), resource.show(reached)
        said.append(f"{resource.name}: {asked} is asked for, {best} comes out")
    capped = [r.argument or r.name for r in problem.resources if r.at_most < float("inf")]
    within = f" within {', '.join(capped)}" if capped else ""
    raise BudgetError(
        f"no set of removals{within} reaches the target: {'; '.join(said)} at the most. "
        "Ask for less, raise the caps, or let more go (protect=, protect_io=False, granularity='group')"
    )


def _most_of(search: Search, resource: Resource) -> float:
    """The largest amount of a resource that a proven set within the caps saves."""
    places: Sequence[int] = [i for i, r in enumerate(search.problem.resources) if r is resource]
    search.rounds = max(search.rounds, 10)
    caps = [limit.without_low() for limit in search.limits]
    chosen: tuple[int, ...] = ()
    while search.rounds > 0:
        search.rounds -= 1
        chosen = tuple(sorted(search.programme.most(resource.pieces, caps, search.bans)))
        if not chosen or search.holds(chosen):
            break
    return search.measured(chosen)[places[0]] if chosen else 0.0
