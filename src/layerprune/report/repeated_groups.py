"""Shows groups of repeated blocks once."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from layerprune.graph import Group

_FEWEST = 3  # minimum number of similar groups that are folded

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class RepeatedGroups:
    """The place of a group that is shown, and the places of similar groups that are only named."""

    first: int
    others: tuple[int, ...] = ()


def repeated_groups_of(
    groups: Sequence[Group], told: Sequence[Iterable[str]], sizes: Sequence[Hashable]
) -> list[RepeatedGroups]:
    """Fold similar groups.

    Groups are similar if their lines (``told``) differ in numbers only, and their ``sizes`` are equal.
    """
    alike: dict[Hashable, list[int]] = {}
    for place, (group, lines, size) in enumerate(zip(groups, told, sizes, strict=True)):
        alike.setdefault((group.verdict, size, tuple(_NUMBER.sub("#", line) for line in lines)), []).append(place)
    found: list[RepeatedGroups] = []
    for places in alike.values():
        if len(places) < _FEWEST:
            found += [RepeatedGroups(place) for place in places]
        else:
            found.append(RepeatedGroups(places[0], tuple(places[1:])))
    return sorted(found, key=lambda fold: fold.first)


def alike_line(fold: RepeatedGroups, groups: Sequence[Group], impacts: Mapping[str, str]) -> str:
    """Name similar groups by the numbers in which their names differ, with their impacts."""
    names = [groups[place].name for place in (fold.first, *fold.others)]
    numbers = [_NUMBER.findall(name) for name in names]
    varying = [place for place, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    count = iter(range(len(numbers[0])))
    pattern = _NUMBER.sub(lambda found: "*" if next(count) in varying else found[0], names[0])
    labels: list[str] = []
    for place, own in zip(fold.others, numbers[1:], strict=True):
        group, label = groups[place], ".".join(own[i] for i in varying)
        has_impact = group.verdict == "removable" and not math.isnan(group.impact)
        labels.append(f"{label} ({impacts[group.name]})" if has_impact else label)
    what = "where * is and the impact" if "(" in labels[0] else "where * is"
    return f"  Alike ({len(fold.others)}): {pattern} {what}: {', '.join(labels)}"
