"""Gives each group its verdict, from the proven removals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isnan, nan

from layerprune.graph import Group, GroupVerdict, LayerGraph, Refusal, RefusalCode
from layerprune.proof.prover import Removal
from layerprune.removals import also_used, why_not

#: In display order.
VERDICTS: tuple[GroupVerdict, ...] = ("removable", "with_calibration", "critical")


def by_impact(removal: Removal) -> tuple[bool, bool, float, int, tuple[str, ...]]:
    """Sort key: least impact first, unknown impacts last, and among these projections last."""
    unknown = isnan(removal.impact)
    impact = 0.0 if unknown else removal.impact
    return unknown, unknown and removal.needs_calibration, impact, removal.num_params, tuple(map(str, removal.subject))


def with_reasons(
    groups: Sequence[Group],
    removals: Sequence[Removal],
    unfitted: Sequence[Removal],
    reasons: Mapping[str, Sequence[Refusal]],
) -> list[Group]:
    """Give each group its verdict, its least impact and its reason.

    ``removals`` are possible now, ``unfitted`` ones need calibration data, and none are given; ``reasons`` tell why no
    removal takes a group out.

    Returns:
        The groups by impact, least first; then those that need calibration data; critical ones last.
    """
    judged: list[Group] = []
    for group in groups:
        ways = [r for r in removals if group.name in r.groups]
        later = [r for r in unfitted if group.name in r.groups]
        if not ways and not later:
            judged.append(replace(group, can_remove=False, impact=inf, **_said(reasons.get(group.name, ()))))
            continue
        best = min(ways or later, key=by_impact)
        found = replace(
            group,
            can_remove=bool(ways),
            needs_calibration=all(r.needs_calibration for r in ways or later),
            impact=best.impact if ways else nan,
            **_said([*(() if ways else [_NO_DATA]), *_company(group.name, ways or later)]),
            num_removed=best.num_params,
            leaves_with=tuple(name for name in best.groups if name != group.name),
        )
        judged.append(found)
    return sorted(judged, key=lambda g: (VERDICTS.index(g.verdict), isnan(g.impact), g.impact))


_NO_DATA = Refusal(RefusalCode.NEEDS_CALIBRATION)


def _said(refusals: Sequence[Refusal]) -> dict[str, str]:
    """A group's reason, and the code of its first refusal."""
    return {"reason": "; ".join(map(str, refusals)), "reason_code": refusals[0].name if refusals else ""}


def _company(name: str, ways: Sequence[Removal]) -> list[Refusal]:
    """Name the groups that must leave with a group; empty where a removal takes it alone."""
    least = min((r.groups for r in ways), key=len)
    if len(least) == 1:
        return []
    always = [f"'{other}'" for other in least if other != name and all(other in r.groups for r in ways)]
    if always:
        return [Refusal(RefusalCode.LEAVES_TOGETHER, name, groups=", ".join(always))]
    some = [f"'{other}'" for other in least if other != name]
    return [Refusal(RefusalCode.LEAVES_WITH_SOME, name, groups=", ".join(some))]


def about_calls(groups: Sequence[Group], removals: Sequence[Removal]) -> list[str]:
    """Note the removals proven for one number of calls only: a loop over tokens makes one call per token."""
    gone = {name for removal in removals for name in removal.groups}
    repeated = [f"'{g.name}' ({len(g.calls)})" for g in groups if g.name in gone and len(g.calls) > 1]
    if not repeated:
        return []
    named = ", ".join([*repeated[:3], "…"] if len(repeated) > 3 else repeated)
    return [
        f"called several times in one forward: {named}; that they may go is proven for these numbers of calls, and "
        "inputs of another length may make others"
    ]


def why_critical(
    graph: LayerGraph, group: Group, refused: Sequence[Refusal], unfoldable: Refusal | None
) -> list[Refusal]:
    """Give the reasons why a group cannot go, and a tied parameter that would also keep it.

    ``refused`` holds the refusals of its candidates, the nearest miss first; ``unfoldable`` tells why no projection
    helps, and is None where none was tried.
    """
    found = [refused[0]] if refused else [why_not(graph, group), *([] if unfoldable is None else [unfoldable])]
    tie = _tie(graph, group)
    return found if tie is None or any(why.root == tie for why in found) else [*found, tie]


def _tie(graph: LayerGraph, group: Group) -> Refusal | None:
    """The refusal for a parameter of the group that others use or hold; None where there is none."""
    for layer in (graph.layers[index] for index in group.members):
        for name in layer.params:
            number = graph.param_ids[name]
            held: dict[tuple[str, str], str] = {}
            for other in (other for other, same in graph.param_ids.items() if same == number):
                owner, _, key = other.rpartition(".")
                held.setdefault((min(graph.all_names([owner])), key), other)
            users = [user for user in graph.param_users.get(number, ()) if user in graph.live]
            others = [user for user in users if user not in group.members]
            if not others and len(held) > 1:
                elsewhere = next(other for other in held.values() if other != name)
                return Refusal(RefusalCode.PARAMETER_TIED, param=name, other=elsewhere)
            if others and len(held) == 1 and layer.is_module:
                return also_used(name, graph.layers[others[0]])
    return None
