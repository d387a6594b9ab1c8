"""Finds the removals that take named groups out, with the fewest other parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from layerprune.errors import CalibrationError, CriticalGroupError, UnknownNameError
from layerprune.graph import Group, LayerGraph, LayerInfo, Refusal
from layerprune.plan import PlannedRemoval
from layerprune.proof import Removal, by_impact
from layerprune.select.cover import cover
from layerprune.select.problem import Problem
from layerprune.torch_internals import INNER_OF_COMPILED

#: A group, a module above several, a pattern of either, or a removal.
Named: TypeAlias = str | Group | LayerInfo | Removal | PlannedRemoval

# Parts that wrappers put in front of a name, and inside it.
_PREFIXES = ("self.", "model.", "module.", f"{INNER_OF_COMPILED}.", "base_model.")
_WITHIN = re.compile(rf"\b{INNER_OF_COMPILED}\.")
_ROOM = 180  # characters for the names that a message lists
_INDEX = re.compile(r"\[['\"]?(\w+)['\"]?\]")


@dataclass(frozen=True)
class _Wish:
    """The groups, or the number of the removal, that a name stands for."""

    said: str
    groups: tuple[str, ...] = ()
    removal: int | None = None


def removals_for(
    given: Named | Iterable[Named], groups: Sequence[Group], problem: Problem, unfitted: Sequence[Removal]
) -> list[int]:
    """Choose the removals that take out the named groups, with the fewest other parameters.

    A group leaves by the removal that takes the fewest parameters of other groups, then by the least impact. A module
    or a pattern stands for all groups below it; these leave by one removal where one takes exactly them. Where the
    removals do not hold together, a search looks for others.

    Args:
        given: names of groups, of modules above them, or patterns (``fnmatch``); :class:`Group` and :class:`Removal`
            objects.
        groups: the groups, with their verdicts.
        problem: the removals, and how a set is proven.
        unfitted: removals that need calibration data, where none were given.

    Returns:
        Numbers of removals; a set that cannot be proven where no other was found.

    Raises:
        UnknownNameError: a name stands for nothing, or for several modules.
        CriticalGroupError: a named group cannot be removed.
        CalibrationError: a named group leaves by a projection only, and there are no data to fit it on.
    """
    by_name = {group.name: group for group in groups}
    reader = _Reader(by_name, problem, unfitted)
    items = [given] if isinstance(given, (str, Group, LayerInfo, Removal, PlannedRemoval)) else _listed(given)
    wishes = [reader.read(item) for item in items]
    for wish in wishes:
        _check(wish, by_name, problem.removals, unfitted)
    wanted = {name for wish in wishes for name in wish.groups}
    fixed = [wish.removal for wish in wishes if wish.removal is not None]
    sizes = {name: group.num_params for name, group in by_name.items()}
    chosen = _least_besides(wishes, wanted, sizes, problem.removals)
    try:
        _ = problem.prove(chosen) if chosen else None
    except Refusal:
        besides = [_besides(removal, wanted, sizes)[0] for removal in problem.removals]
        return list(cover(problem, sorted(wanted), fixed, besides) or chosen)
    return chosen


def _listed(given: Any) -> list[Any]:
    try:
        return list(given)
    except TypeError:
        raise UnknownNameError(
            f"groups is {given!r:.60}: give a name, or a list of names, as groups=['layer1.0', 'head.fc']"
        ) from None


# ---- what names stand for --------------------------------------------------------------------------------------------


class _Reader:
    """Resolves names and objects to groups or removals."""

    def __init__(self, groups: dict[str, Group], problem: Problem, unfitted: Sequence[Removal]) -> None:
        self.groups = groups
        self.graph: LayerGraph = problem.graph
        self.numbers = {removal.name: number for number, removal in enumerate(problem.removals)}
        self.unfitted = {removal.name for removal in unfitted}
        self.names = {name: self.graph.all_names([name]) | {_WITHIN.sub("", name)} for name in groups}
        self.modules = frozenset(above for names in self.names.values() for name in names for above in _above(name))

    def read(self, item: object) -> _Wish:
        if isinstance(item, (Removal, PlannedRemoval)):
            return self.removal(item.name)
        if isinstance(item, (Group, LayerInfo)):
            item = item.name
        if not isinstance(item, str):
            hint = ""
            if isinstance(item, int) and 0 <= item < len(self.groups):
                hint = f"; group {item} is '{list(self.groups)[item]}'"
            raise UnknownNameError(
                f"groups holds {item!r:.60} ({type(item).__name__}): give names of groups or modules, or objects of "
                f"pruner.groups or pruner.removals{hint}"
            )
        if item in self.numbers or item in self.unfitted:
            return self.removal(item)
        return _Wish(item, self.spelled(item))

    def removal(self, name: str) -> _Wish:
        if name in self.unfitted:
            raise CalibrationError(
                f"removal '{name:.120}' is by a projection, which is fitted on calibration data: make the pruner with "
                "calibration=, an iterable of batches"
            )
        if name not in self.numbers:
            raise UnknownNameError(f"this pruner has no removal '{name:.120}'; take it from pruner.removals")
        return _Wish(name, removal=self.numbers[name])

    def spelled(self, said: str) -> tuple[str, ...]:
        for name in self.spellings(said):
            if found := self.named(name):
                return found
        ends = {m for name in self.spellings(said) for m in self.modules if m.endswith(f".{name}")} if said else set()
        alike = {found for end in sorted(ends) if (found := self.named(end))}
        if len(alike) > 1:
            some = ", ".join(f"'{end}'" for end in sorted(ends)[:4])
            raise UnknownNameError(f"'{said:.80}' stands for {len(alike)} modules, {some}: give the whole name")
        if not alike:
            raise UnknownNameError(self.unknown(said))
        return alike.pop()

    def spellings(self, said: str) -> list[str]:
        """A name as given, with dots for other signs, without a parameter's own name, without a wrapper's prefix."""
        dotted = _INDEX.sub(r".\1", said.strip()).replace("/", ".").strip(".")
        found = [said, dotted, _WITHIN.sub("", dotted)]
        found += [name.rpartition(".")[0] for name in found if name in self.graph.param_ids]
        for name in found:
            found += [name.removeprefix(each) for each in _PREFIXES if name.startswith(each)]
        return list(dict.fromkeys(filter(None, found)))

    def named(self, name: str) -> tuple[str, ...]:
        """The group of a name, or the groups below a module, or those that a pattern matches; may be empty."""
        exact = [group for group, names in self.names.items() if name in names]
        if exact:
            return tuple(exact)
        below = [g for g, names in self.names.items() if any(each.startswith(f"{name}.") for each in names)]
        if below or not any(sign in name for sign in "*?"):
            return tuple(below)
        patterns = (name, f"{name}.*")
        return tuple(g for g, names in self.names.items() if any(fnmatchcase(n, p) for n in names for p in patterns))

    def unknown(self, said: str) -> str:
        line = f"there is no group '{said:.80}'; "
        for group in self.groups.values():
            if any(layer.name in self.spellings(said) for layer in group.layers[1:]):
                return line + f"it is a layer of group '{group.name}', and leaves with it: groups=['{group.name}']"
        close = [f"'{name}'" for name in get_close_matches(said, {*self.names, *self.modules, *self.numbers}, n=3)]
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        names = [f"'{name}'" for name in self.groups]
        shown = names[:8]
        while len(shown) > 1 and len(", ".join(shown)) + len(hint) > _ROOM:
            shown.pop()
        return f"{line}groups are {', '.join(shown)}{', …' if len(names) > len(shown) else ''}{hint}"


def _above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _check(wish: _Wish, groups: dict[str, Group], removals: Sequence[Removal], unfitted: Sequence[Removal]) -> None:
    usable = {name for removal in removals for name in removal.groups}
    missing = [name for name in wish.groups if name not in usable]
    if not missing:
        return
    name = missing[0]
    part = f" of '{wish.said:.60}'" if len(wish.groups) > 1 else ""
    if any(name in removal.groups for removal in unfitted):
        raise CalibrationError(
            f"group '{name}'{part} leaves by a projection only, which is fitted on calibration data: make the pruner "
            "with calibration=, an iterable of batches"
        )
    others = [other for other in wish.groups if other in usable]
    rest = f"; of the others may go: {', '.join(others[:4])}{', …' if len(others) > 4 else ''}" if others else ""
    raise CriticalGroupError(f"group '{name}'{part} cannot be removed: {groups[name].reason}{rest}")


# ---- which removals --------------------------------------------------------------------------------------------------


def alone(name: str, ways: Iterable[Removal], sizes: Mapping[str, int]) -> Removal:
    """The removal by which a group leaves when it alone is named."""
    return min(ways, key=lambda removal: (_besides(removal, {name}, sizes), by_impact(removal)))


def _besides(removal: Removal, wanted: Collection[str], sizes: Mapping[str, int]) -> tuple[int, int]:
    """The parameters that a removal takes from groups that were not named, and the number of these groups."""
    others = [name for name in removal.groups if name not in wanted]
    return sum(sizes[name] for name in others), len(others)


def _least_besides(
    wishes: Sequence[_Wish], wanted: set[str], sizes: dict[str, int], removals: Sequence[Removal]
) -> list[int]:
    """For each wish the removal that takes the fewest other parameters, without needless ones."""
    chosen: dict[int, None] = {}
    for wish in wishes:
        if wish.removal is not None:
            chosen[wish.removal] = None
            continue
        whole = [i for i, r in enumerate(removals) if set(wish.groups) <= set(r.groups) <= wanted]
        if len(wish.groups) > 1 and whole:  # as much of a module as can go, with its norms
            chosen[min(whole, key=lambda i: (-removals[i].num_params, by_impact(removals[i])))] = None
            continue
        for name in wish.groups:
            ways = [i for i, r in enumerate(removals) if name in r.groups]
            if len(wish.groups) == 1 or not any(name in removals[i].groups for i in chosen):
                chosen[min(ways, key=lambda i: (_besides(removals[i], wanted, sizes), by_impact(removals[i])))] = None
    for i, removal in enumerate(removals):  # one removal for several, where its impact is not above their sum
        inside = [j for j in chosen if j != i and set(removals[j].groups) <= set(removal.groups)]
        covered = {name for j in inside for name in removals[j].groups}
        if covered == set(removal.groups) <= wanted and removal.impact <= sum(removals[j].impact for j in inside):
            chosen = dict.fromkeys([j for j in chosen if j not in inside] + [i])
    needless = [i for i in chosen if any(i != j and removals[i].dead < removals[j].dead for j in chosen)]
    return [i for i in chosen if i not in needless]
