"""Configs: which fields of a transformers config count the layers of a container, and what to write there instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from layerprune.adapters.likeness import Shortened, unlike
from layerprune.adapters.twins import ConfigDict, Origin, twin_of

_Path = tuple[str, ...]
_Change = Callable[[ConfigDict], None]

_FAILED = 1000
_MOST_CHANGES = 4


@dataclass(frozen=True)
class Count:
    """Where a config says how many elements a container has: under ``key`` of the config at ``path``.

    ``place`` is the entry of a list of counts (one per stage); ``key`` is None where only a list's length says it.
    """

    path: _Path
    key: str | None
    place: int | None = None


@dataclass(frozen=True)
class Found:
    """A config for what is left; ``reason`` says why there is none."""

    origin: Origin
    reason: str = ""


@lru_cache(maxsize=512)
def find_config(origin: Origin, removed: tuple[tuple[str, tuple[int, ...]], ...], sizes: tuple[int, ...]) -> Found:
    """Find the config from which vanilla transformers builds a model without some layers.

    The count is lowered and every list of its length loses the entries of the layers that go. Where the stack that
    this config builds is another one than what is left, fields that may hold places of layers are tried, one by one.

    Args:
        origin: what the whole model is built from.
        removed: for each container the elements that go.
        sizes: how many elements each has.
    """
    shortened = Shortened(dict(removed), {fqn: n for (fqn, _), n in zip(removed, sizes, strict=True)})
    whole = twin_of(origin)
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
        reasons, config = min((self.judged([], every) for every in (True, False)), key=lambda pair: len(pair[0]))
        every = config == self.config([], True)
        changes: list[_Change] = []
        waiting = list(self.changes()) if reasons else []
        while reasons and waiting and len(changes) < _MOST_CHANGES:
            tried = [(self.judged([*changes, change], every)[0], place) for place, change in enumerate(waiting)]
            better, place = min(tried, key=lambda pair: len(pair[0]))
            if len(better) >= len(reasons):
                break
            reasons = better
            changes.append(waiting.pop(place))
        found = self.origin.with_config(self.config(changes, every))
        return Found(found, f"vanilla transformers would not load what is left: {reasons[0]}" if reasons else "")

    def judged(self, changes: Sequence[_Change], every: bool) -> tuple[list[str], ConfigDict]:
        """What is wrong with the stack that a config builds."""
        config = self.config(changes, every)
        twin = twin_of(self.origin.with_config(config))
        if twin.model is None:
            return [twin.reason] * _FAILED, config
        return unlike(twin_of(self.origin), twin, self.shortened), config

    def config(self, changes: Sequence[_Change], every: bool) -> ConfigDict:
        """The config with lower counts and more changes; ``every`` shortens all lists of that length."""
        config = self.origin.config
        for fqn, count in self.counts.items():
            lower(config, count, self.shortened.removed[fqn], self.shortened.sizes[fqn], every)
        for change in changes:
            change(config)
        return config

    def changes(self) -> Iterator[_Change]:
        """Changes to fields that may hold places of layers."""
        for fqn, count in self.counts.items():
            gone, size = self.shortened.removed[fqn], self.shortened.sizes[fqn]
            inner = _at(self.origin.config, count.path)
            derived = [key for key in self.derived(count.path) if len(inner[key]) != size]
            if derived:
                yield lambda config, path=count.path, keys=derived: _drop(_at(config, path), keys)
            for key, value in inner.items():
                if key != count.key and (new := _moved(value, gone, size)) not in (None, value):
                    yield lambda config, path=count.path, key=key, new=new: _at(config, path).__setitem__(key, new)

    def derived(self, path: _Path) -> list[str]:
        """The lists that the config's class makes itself, when they are not given."""
        whole = self.origin.reread()
        found: list[str] = []
        for key, value in _at(self.origin.config, path).items():
            if isinstance(value, list):
                config = self.origin.config
                _drop(_at(config, path), [key])
                if self.origin.with_config(config).reread() == whole:
                    found.append(key)
        return found


@lru_cache(maxsize=128)
def find_count(origin: Origin, fqn: str, size: int) -> Count | None:
    """Find the field that counts the elements of a container: lower by one, and the container has one less."""
    whole = twin_of(origin).forms
    best: tuple[int, Count | None] = (_FAILED, None)
    for count in _candidates(origin.config, size):
        for every in (True, False):
            config = origin.config
            lower(config, count, (size - 1,), size, every)
            built = twin_of(origin.with_config(config)).forms
            if f"{fqn}.{size - 2}" in built and f"{fqn}.{size - 1}" not in built:
                others = [
                    name for name in whole if name not in built and not f"{name}.".startswith(f"{fqn}.{size - 1}.")
                ]
                best = min(best, (len(others), count), key=lambda pair: pair[0])
                break
    return best[1]


def _candidates(config: ConfigDict, size: int) -> Iterator[Count]:
    """The fields that might count a container's elements, likeliest first."""
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


def lower(config: ConfigDict, count: Count, gone: Sequence[int], size: int, every: bool) -> None:
    """Lower a count, and take the entries of the layers that go out of the lists beside it."""
    inner = _at(config, count.path)
    if count.key is not None and count.place is not None:
        inner[count.key][count.place] -= len(gone)
        return
    if count.key is not None:
        inner[count.key] -= len(gone)
    for key, value in inner.items():
        if every and isinstance(value, list) and len(cast("list[Any]", value)) == size:
            inner[key] = [entry for i, entry in enumerate(cast("list[Any]", value)) if i not in gone]


def _moved(value: Any, gone: Sequence[int], size: int) -> Any:
    """A field that holds places of layers, as it reads without some of them; None where it can be no such field."""
    if type(value) is int:
        return value - sum(i < value for i in gone) if 0 < value <= size else None
    if isinstance(value, list):
        entries = cast("list[Any]", value)
        if not all(type(i) is int and 0 <= i < size for i in entries) or len(set(entries)) != len(entries):
            return None
        return [i - sum(r < i for r in gone) for i in entries if i not in gone]
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        if not items or not all(key.isdigit() and int(key) < size for key in items):
            return None
        return {str(int(k) - sum(r < int(k) for r in gone)): v for k, v in items.items() if int(k) not in gone}
    return None


def _drop(config: ConfigDict, keys: Sequence[str]) -> None:
    for key in keys:
        config.pop(key, None)


def _inner(config: ConfigDict, path: _Path = ()) -> Iterator[tuple[_Path, ConfigDict]]:
    """A config and the configs inside it."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from _inner(cast(ConfigDict, value), (*path, key))


def _at(config: ConfigDict, path: _Path) -> ConfigDict:
    for key in path:
        config = config[key]
    return config
