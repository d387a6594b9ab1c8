"""Joins the plans of pruning rounds to one plan, and takes it apart again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from layerprune.edits import Boundary, Edit, name_before, rounds_of
from layerprune.errors import PlanError
from layerprune.plan.records import PlanHeader, PlannedFigure, PlannedRemoval

if TYPE_CHECKING:
    from layerprune.plan.plan import PruningPlan


def composed(plans: Sequence[PruningPlan]) -> PruningPlan:
    """One plan that makes the removals of several plans of one round each, one after the other.

    Plans without edits between others are left out: a round that removes nothing is none.

    Raises:
        PlanError: a plan was not made for the model that the one before it leaves.
    """
    some = [plan for plan in plans if plan.edits] or list(plans[:1])
    if len(some) == 1:
        return some[0]
    for number, (before, after) in enumerate(pairwise(some), start=1):
        if (before.model, before.num_params_after) != (after.model, after.num_params_before):
            raise PlanError(
                f"plan {number} leaves a {before.model} of {before.num_params_after:,} parameters, the next one was "
                f"made for a {after.model} of {after.num_params_before:,}: they are not rounds of one model"
            )
    edits: list[Edit] = []
    for plan in some:
        edits += [Boundary(), *plan.edits] if edits else plan.edits
    return type(some[0])(
        **_whole(some),
        removals=tuple(
            removal.model_copy(update={"round": number})
            for number, plan in enumerate(some, start=1)
            for removal in plan.removals
        ),
        edits=tuple(edits),
        rounds=tuple(PlanHeader(**_header(plan)) for plan in some),
    )


def parts_of(plan: PruningPlan) -> tuple[PruningPlan, ...]:
    """The plan of each round; the plan itself where it has one."""
    if not plan.rounds:
        return (plan,)
    return tuple(
        type(plan)(
            **_header(header),
            removals=tuple(r.model_copy(update={"round": 1}) for r in plan.removals if r.round == number),
            edits=edits,
        )
        for number, (header, edits) in enumerate(zip(plan.rounds, rounds_of(plan.edits), strict=True), start=1)
    )


def names_at_first(removal: PlannedRemoval, edits: Sequence[Edit]) -> tuple[str, ...]:
    """The groups of a removal by the names that they had before the first round."""
    before: list[Edit] = []
    for some in rounds_of(edits)[: removal.round - 1]:
        before += [*some, Boundary()]
    return tuple(name_before(name, before) for name in removal.groups)


def why_inconsistent(plan: PruningPlan) -> str:
    """Why removals, edits and headers of the rounds do not belong together; empty if they do."""
    rounds, num_rounds = plan.rounds, len(rounds_of(plan.edits))
    if len(rounds) == 1 or max(len(rounds), 1) != num_rounds:
        return f"there are {len(rounds)}, and edits of {num_rounds}"
    last = max((removal.round for removal in plan.removals), default=1)
    if last > num_rounds:
        return f"a removal is of round {last} of {num_rounds}"
    sizes = [plan.num_params_before, *(header.num_params_after for header in rounds)]
    for number, header in enumerate(rounds, start=1):
        if header.num_params_before != sizes[number - 1]:
            return f"round {number} begins with {header.num_params_before:,} parameters, not {sizes[number - 1]:,}"
    if rounds and (rounds[0].fingerprint, sizes[-1]) != (plan.fingerprint, plan.num_params_after):
        return "the first one's model and the last one's size are not those of the plan"
    return ""


def _header(header: PlanHeader) -> dict[str, Any]:
    return {name: getattr(header, name) for name in PlanHeader.model_fields}


def _whole(plans: Sequence[PruningPlan]) -> dict[str, Any]:
    """The header of all rounds together: the model before the first, the size after the last."""
    first, last = plans[0], plans[-1]
    several = "impacts of a round are measured against the model that the round before it left"
    in_all = [note for note in first.notes if all(note in plan.notes for plan in plans)]
    of_one = [
        f"round {number}: {note}"
        for number, plan in enumerate(plans, start=1)
        for note in plan.notes
        if note not in in_all
    ]
    return {
        "model": first.model,
        "fingerprint": first.fingerprint,
        "structure": first.structure,
        "max_param_reduction": None,
        "granularity": _each("granularity", plans),
        "strategy": _each("strategy", plans),
        "seed": first.seed,
        "num_params_before": first.num_params_before,
        "num_params_after": last.num_params_after,
        "figures": _figures(plans),
        "impact_unit": _each("impact_unit", plans),
        "needs_layerprune": any(plan.needs_layerprune for plan in plans),
        "notes": (*in_all, several, *of_one),
    }


def _each(field: str, plans: Sequence[PruningPlan]) -> str:
    return ", then ".join(dict.fromkeys(str(getattr(plan, field)) for plan in plans))


def _figures(plans: Sequence[PruningPlan]) -> tuple[PlannedFigure, ...]:
    """Figures that all rounds have; counted ones only where the rounds counted the same forward."""
    tables = [{figure.name: figure for figure in plan.figures} for plan in plans]
    found: list[PlannedFigure] = []
    for name, first in tables[0].items():
        rows = [table[name] for table in tables if name in table]
        is_counted = name == "macs"
        agree = all(a.after == b.before for a, b in pairwise(rows))
        if len(rows) == len(tables) and (agree or not is_counted):
            found.append(PlannedFigure(name=name, before=first.before, after=rows[-1].after))
    return tuple(found)
