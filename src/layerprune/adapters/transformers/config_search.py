"""Finds the config fields that count the layers of a container, and their new values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

from layerprune.adapters.transformers.reference_diff import Shortened, renumbered, unlike
from layerprune.adapters.transformers.reference_model import ConfigDict, Origin, reference_model_of

_Path = tuple[str, ...]
_Change = Callable[[ConfigDict], None]

_FAILED = 1000
_PLACES = frozenset({"layers", "blocks", "ids", "idx", "idxs", "index", "indexes", "indices"})
_LAYERS = frozenset({"layer", "layers", "block", "blocks", "attn", "visual"})
_MOST_CHANGES = 4


@dataclass(frozen=True)
class Count:
    """A config field, or without ``key`` a list's length, that counts the elements of a container or stage."""

    path: _Path
    key: str | None
    place: int | None = None


@dataclass(frozen=True)
class _Lists:
    """Lists beside a count: whether to shorten those of its length, and to leave out those that the class derives."""

    shorten: bool
    leave_derived: bool


_LISTS = (_Lists(True, False), _Lists(True, True), _Lists(False, False), _Lists(False, True))


@dataclass(frozen=True)
class Found:
    """A config for the remaining layers; ``reason`` says why there is none."""

    origin: Origin
    reason: str = ""


@lru_cache(maxsize=512)
def find_config(origin: Origin, removed: tuple[tuple[str, tuple[int, ...]], ...], sizes: tuple[int, ...]) -> Found:
    """Find the config from which vanilla transformers builds a model without the removed layers.

    The count is lowered, and each list of its length loses the entries of removed layers. If the reference model of
    this config differs from the pruned model, fields that may hold layer numbers are changed as well, one by one.
    ``removed`` are the removed elements of each container, ``sizes`` the containers' numbers of elements.
    """
    shortened = Shortened(dict(removed), {fqn: n for (fqn, _), n in zip(removed, sizes, strict=True)})
    whole = reference_model_of(origin)
    if whole.model is None:
        return Found(origin, f"transformers does not build it from its own config ({whole.reason})")
    counts: dict[str, Count] = {}
    for fqn, size in shortened.sizes.items():
        count = find_count(origin, fqn, size)
        if count is None:
            return Found(origin, f"no field of the config is the number of layers in '{fqn}'")
        counts[fqn] = count
    return _Search(origin, shortened, counts).run()


class _Search:
    def __init__(self, origin: Origin, shortened: Shortened, counts: Mapping[str, Count]) -> None:
        self.origin = origin
        self.shortened = shortened
        self.counts = counts

    def run(self) -> Found:
        reasons, lists = self.judged(_LISTS[0], []), _LISTS[0]
        for other in _LISTS[1:] if reasons else ():
            reasons, lists = min((reasons, lists), (self.judged(other, []), other), key=lambda pair: len(pair[0]))
        changes: list[_Change] = []
        waiting = list(self.changes()) if reasons else []
        while reasons and waiting and len(changes) < _MOST_CHANGES:
            tried = [(self.judged(lists, [*changes, change]), place) for place, change in enumerate(waiting)]
            better, place = min(tried, key=lambda pair: len(pair[0]))
            if len(better) >= len(reasons):
                break
            reasons = better
            changes.append(waiting.pop(place))
        for change in () if reasons else self.followers():
            if not self.judged(lists, [*changes, change]):
                changes.append(change)
        found = self.origin.with_config(self.config(lists, changes))
        return Found(found, f"vanilla transformers would not load what is left: {reasons[0]}" if reasons else "")

    def judged(self, lists: _Lists, changes: Sequence[_Change]) -> list[str]:
        """Differences between the pruned model and the reference model of a config."""
        twin = reference_model_of(self.origin.with_config(self.config(lists, changes)))
        if twin.model is None:
            return [twin.reason] * _FAILED
        return unlike(reference_model_of(self.origin), twin, self.shortened)

    def config(self, lists: _Lists, changes: Sequence[_Change]) -> ConfigDict:
        config = self.origin.config
        # Entries of lists first, since a list may lose entries below.
        for fqn, count in sorted(self.counts.items(), key=lambda item: item[1].place is None):
            lower(self.origin, config, count, self.shortened.removed[fqn], self.shortened.sizes[fqn], lists)
        for change in changes:
            change(config)
        return config

    def changes(self) -> Iterator[_Change]:
        """Changes of fields that may hold layer numbers."""
        for fqn, count in self.counts.items():
            gone, size = self.shortened.removed[fqn], self.shortened.sizes[fqn]
            inner = _at(self.origin.config, count.path)
            for key in placing_fields(self.origin, fqn, size, count):
                if (new := renumbered(inner[key], gone, size)) != inner[key]:
                    yield lambda config, path=count.path, key=key, new=new: _at(config, path).__setitem__(key, new)

    def followers(self) -> Iterator[_Change]:
        """Changes of fields that name layers for forwards only; the reference model does not depend on them."""
        for fqn, count in self.counts.items():
            gone, size = self.shortened.removed[fqn], self.shortened.sizes[fqn]
            for key, value in _at(self.origin.config, count.path).items():
                stacks = {"encoder", "decoder"} & set(key.split("_"))
                named = isinstance(value, list) and _names_places(key) and all(stack in fqn for stack in stacks)
                new = renumbered(value, gone, size) if named else None
                if new is not None and new != value:
                    yield partial(_move, path=count.path, key=key, old=value, new=new)


def _names_places(key: str) -> bool:
    words = set(key.split("_"))
    return bool(words & _PLACES) and bool(words & _LAYERS) and "num" not in words


def _move(config: ConfigDict, path: _Path, key: str, old: Any, new: Any) -> None:
    inner = _at(config, path)
    if inner.get(key) == old:
        inner[key] = new


@lru_cache(maxsize=128)
def find_count(origin: Origin, fqn: str, size: int) -> Count | None:
    """Find the field that counts the elements of a container: lowered by one, it builds one element less."""
    whole = reference_model_of(origin).forms
    best: tuple[int, Count | None] = (_FAILED, None)
    for count in _candidates(origin.config, size):
        for lists in _LISTS:
            config = origin.config
            lower(origin, config, count, (size - 1,), size, lists)
            built = reference_model_of(origin.with_config(config)).forms
            if f"{fqn}.{size - 2}" in built and f"{fqn}.{size - 1}" not in built:
                last = f"{fqn}.{size - 1}."
                others = sum(name not in built and not f"{name}.".startswith(last) for name in whole)
                best = min(best, (others, count), key=lambda pair: pair[0])
                break
    return best[1]


@lru_cache(maxsize=128)
def placing_fields(origin: Origin, fqn: str, size: int, count: Count) -> tuple[str, ...]:
    """Fields beside a count that hold layer numbers: a change of the field changes some elements, but not all."""
    whole = reference_model_of(origin).forms
    found: list[str] = []
    for key, value in _at(origin.config, count.path).items():
        moved = renumbered(value, (0,), size)
        if key == count.key or moved is None or moved == value:
            continue
        config = origin.config
        _at(config, count.path)[key] = moved
        built = reference_model_of(origin.with_config(config)).forms
        others = [name for name in {*whole, *built} if whole.get(name) != built.get(name)]
        places = {name.removeprefix(fqn + ".").partition(".")[0] for name in others if name.startswith(fqn + ".")}
        if not built or 0 < len(places) < (size + 1 if isinstance(value, list) else size):
            found.append(key)
    return tuple(found)


@lru_cache(maxsize=64)
def derived_lists(origin: Origin, path: _Path) -> tuple[str, ...]:
    """Lists of a config that its class derives identically when they are missing."""
    whole = origin.reread()
    found: list[str] = []
    for key, value in _at(origin.config, path).items():
        if isinstance(value, list):
            config = origin.config
            del _at(config, path)[key]
            if origin.with_config(config).reread() == whole:
                found.append(key)
    return tuple(found)


def _candidates(config: ConfigDict, size: int) -> Iterator[Count]:
    """Fields that may count a container's elements, most likely first."""
    lengths: list[Count] = []
    for path, inner in _inner(config):
        for key, value in inner.items():
            if type(value) is int and value == size:
                yield Count(path, key)
            elif isinstance(value, list):
                entries = cast("list[Any]", value)
                if entries and all(type(entry) is int for entry in entries):
                    lengths += [Count(path, key, i) for i, entry in enumerate(entries) if entry == size]
                if len(entries) == size:
                    lengths.append(Count(path, None))
    yield from dict.fromkeys(lengths)


def lower(origin: Origin, config: ConfigDict, count: Count, gone: Sequence[int], size: int, lists: _Lists) -> None:
    """Lower a count, and adapt the lists beside it."""
    inner = _at(config, count.path)
    if count.key is not None and count.place is not None:
        inner[count.key][count.place] -= len(gone)
        return
    if count.key is not None:
        inner[count.key] -= len(gone)
    before = _at(origin.config, count.path)
    derived = derived_lists(origin, count.path) if lists.leave_derived else ()
    derived = [key for key in derived if inner.get(key) == before[key]]
    for key, value in list(inner.items()):
        entries = cast("list[Any]", value)
        if isinstance(value, list) and len(entries) == size and lists.shorten:
            places = entries == list(range(size))  # a list of all layer numbers, such as the layers with experts
            inner[key] = (
                renumbered(entries, gone, size) if places else [e for i, e in enumerate(entries) if i not in gone]
            )
        elif key in derived:
            del inner[key]


def _inner(config: ConfigDict, path: _Path = ()) -> Iterator[tuple[_Path, ConfigDict]]:
    yield path, config
    for key, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from _inner(cast(ConfigDict, value), (*path, key))


def _at(config: ConfigDict, path: _Path) -> ConfigDict:
    for key in path:
        config = config[key]
    return config
