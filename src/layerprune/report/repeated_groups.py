"""Shows groups of repeated blocks once, and groups that leave by one removal together."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from layerprune.graph import Group
from layerprune.tables import impact_text

_FEWEST = 3  # minimum number of similar groups that are folded

_NUMBER = re.compile(r"\d+")
_QUOTED = re.compile(r"'[^']*'")


@dataclass(frozen=True)
class RepeatedGroups:
    """The place of a group that is shown, and the places of groups that are only named below it.

    Attributes:
        first: the group that is shown.
        others: similar groups of other blocks.
        partners: groups that leave by the same removal as the first one, each of the others with its own.
    """

    first: int
    others: tuple[int, ...] = ()
    partners: tuple[int, ...] = ()


def repeated_groups_of(
    groups: Sequence[Group], told: Sequence[Iterable[str]], sizes: Sequence[Hashable]
) -> list[RepeatedGroups]:
    """Fold similar groups, then groups that leave together.

    Groups are similar if the ``sizes`` of their removals are equal, and their lines (``told``) differ in numbers of
    names only; a line without a quoted name has none.
    """
    alike: dict[Hashable, list[int]] = {}
    for place, (group, lines, size) in enumerate(zip(groups, told, sizes, strict=True)):
        alike.setdefault((group.verdict, size, tuple(map(_without_numbers, lines))), []).append(place)
    found: list[RepeatedGroups] = []
    for places in alike.values():
        if len(places) < _FEWEST:
            found += [RepeatedGroups(place) for place in places]
        else:
            found.append(RepeatedGroups(places[0], tuple(places[1:])))
    return _with_partners(groups, sorted(found, key=lambda fold: fold.first))


def _without_numbers(line: str) -> str:
    """A line without the numbers of its names: a reason's are quoted, other lines of this form hold names only."""
    if not line.startswith(("  Note: ", "  Reason: ", "  Needs calibration: ")):
        return _NUMBER.sub("#", line)
    return _QUOTED.sub(lambda name: _NUMBER.sub("#", name[0]), line)


def _with_partners(groups: Sequence[Group], folds: Sequence[RepeatedGroups]) -> list[RepeatedGroups]:
    """Name groups that leave by the removal of a group before them below that group."""
    found: dict[Hashable, RepeatedGroups] = {}
    for fold in folds:
        removals = frozenset(_removal_of(groups[place]) for place in (fold.first, *fold.others))
        key = removals if groups[fold.first].leaves_with else fold.first
        shown = found.get(key)
        found[key] = fold if shown is None else replace(shown, partners=(*shown.partners, fold.first))
    return list(found.values())


def _removal_of(group: Group) -> tuple[frozenset[str], str]:
    return frozenset((group.name, *group.leaves_with)), impact_text(group.impact)


def partners_line(fold: RepeatedGroups, groups: Sequence[Group], by_name: Sequence[str]) -> str:
    """Name the groups that leave by the same removal, with their own sizes, and what each takes when it is named."""
    named: list[str] = []
    for place, other in zip(fold.partners, by_name, strict=True):
        own = f"{groups[place].num_params:,} parameters"
        named.append(f"{groups[place].name} ({own}; by name: {other})" if other else f"{groups[place].name} ({own})")
    return f"  Groups of the same removal: {', '.join(named)}"


def alike_line(fold: RepeatedGroups, groups: Sequence[Group], impacts: Mapping[str, str]) -> str:
    """Name similar groups by the blocks that they lie in: ``layers.1–31: as layers.0``; and their impacts if unlike."""
    names = [groups[place].name for place in (fold.first, *fold.others)]
    numbers = [_NUMBER.findall(name) for name in names]
    varying = [place for place, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    labels = [".".join(own[i] for i in varying) for own in numbers]
    first, blocks = _blocks(names[0], varying, labels)
    line = f"  {blocks}: as {first}"
    own = [groups[place] for place in (fold.first, *fold.others)]
    columns = {
        "the impact": [impacts[group.name] for group in own] if own[0].verdict == "removable" else [],
        "their parameters": [f"{group.num_params:,}" for group in own],
    }
    unlike = {what: told for what, told in columns.items() if len(set(told)) > 1}
    if not unlike:
        return line
    told = (
        f"{label} ({'; '.join(values)})"
        for label, *values in zip(labels[1:], *(v[1:] for v in unlike.values()), strict=True)
    )
    return f"{line}, but for {' and '.join(unlike)}: {', '.join(told)}"


def _blocks(name: str, varying: Sequence[int], labels: Sequence[str]) -> tuple[str, str]:
    """The block of the first label, and those of the others, by the part of the name up to what varies."""
    spans = [found.span() for found in _NUMBER.finditer(name)]
    start, end = spans[varying[0]][0], spans[varying[-1]][1]
    before = name[:start]
    if len(varying) == 1:
        if not before:  # elements of the model itself
            return f"layer {labels[0]}", f"layers {_ranges(labels[1:])}"
        return name[:end], f"{before}{_ranges(labels[1:])}"
    count = iter(range(len(spans)))
    pattern = _NUMBER.sub(lambda found: "*" if next(count) in varying else found[0], name[:end])
    return name[:end], f"{pattern} at {', '.join(labels[1:])}"


def _ranges(labels: Sequence[str]) -> str:
    """Numbers in order, runs of at least three as a range: ``0–9, 11``."""
    runs: list[list[int]] = []
    for number in sorted(map(int, labels)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts: list[str] = []
    for run in runs:
        texts += [f"{run[0]}–{run[-1]}"] if len(run) > 2 else map(str, run)
    return ", ".join(texts)
