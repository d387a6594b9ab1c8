"""Compares a model without some layers with the reference model of a shortened config."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

from layerprune.adapters.transformers.reference_model import Form, ReferenceModel, inner_configs

# Configs raise these for attributes that do not apply; RuntimeError where layers differ in size (gemma4's
# ``head_dim``).
_UNREADABLE = (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)


_MOST_LAYERS = 10**6


@dataclass(frozen=True)
class Shortened:
    """The elements that leave containers: container → removed elements, sorted, and container → size."""

    removed: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]

    @cached_property
    def kept(self) -> dict[str, list[int]]:
        """Container → old numbers of the remaining elements, outer containers first."""
        found = {fqn: [i for i in range(self.sizes[fqn]) if i not in gone] for fqn, gone in self.removed.items()}
        return dict(sorted(found.items(), key=lambda item: item[0].count(".")))

    @cached_property
    def counts(self) -> set[int]:
        each = [len(gone) for gone in self.removed.values()]
        return {*each, sum(each)}

    def original(self, name: str) -> str | None:
        """The old name of a module; None for a new module."""
        for fqn, kept in self.kept.items():
            rest = name.removeprefix(fqn + ".")
            if rest != name:
                key, dot, below = rest.partition(".")
                if not key.isdigit() or int(key) >= len(kept):
                    return None
                name = f"{fqn}.{kept[int(key)]}{dot}{below}"
        return name

    def is_gone(self, name: str) -> bool:
        return any(f"{name}.".startswith(f"{fqn}.{i}.") for fqn, gone in self.removed.items() for i in gone)

    def places(self, name: str) -> Iterator[tuple[str, int, int]]:
        """The containers of a module (by old name), innermost first, with its old and its new place."""
        for fqn, kept in reversed(self.kept.items()):
            rest = name.removeprefix(fqn + ".")
            if rest != name:
                old = int(rest.partition(".")[0])
                yield fqn, old, kept.index(old)


def unlike(before: ReferenceModel, after: ReferenceModel, shortened: Shortened) -> list[str]:
    """Differences between the model of the shortened config and the whole config's model without removed layers."""
    old_names: set[str] = set()
    found: list[str] = []
    for name, form in after.forms.items():
        old = shortened.original(name)
        if old is None or old not in before.forms:
            found.append(f"it would have a module '{name}' that is not there")
            continue
        old_names.add(old)
        if before.forms[old] != form:
            found += _module_differs(before, old, form, shortened)
    missing = [name for name in before.forms if name not in old_names and not shortened.is_gone(name)]
    found += [f"it would lack the module '{name}'" for name in missing]
    return found + list(_lists_differ(before, after, shortened))


def _module_differs(before: ReferenceModel, name: str, after: Form, shortened: Shortened) -> Iterator[str]:
    form = before.forms[name]
    if form.kind != after.kind:
        if not is_exchangeable(form, after):
            yield f"{_named(name)} would be a {_last(after.kind)}, not a {_last(form.kind)}"
        return
    for key in form.tensors.keys() | after.tensors.keys():
        if form.tensors.get(key) != after.tensors.get(key):
            yield f"{_named(name, key)} would be {after.tensors.get(key)}, not {form.tensors.get(key)}"
    for key in form.plain.keys() | after.plain.keys():
        old, new = form.plain.get(key), after.plain.get(key)
        if old != new and not _is_counted(before, name, key, new, shortened):
            yield f"{_named(name, key)} would be {_brief(new)}, not {_brief(old)}"


def is_exchangeable(one: Form, other: Form) -> bool:
    """Whether two leaves without tensors may swap: Identity, and (as the proof verifies) a no-op in eval mode."""
    return (
        one.is_leaf
        and other.is_leaf
        and not one.tensors
        and not other.tensors
        and "Identity" in (_last(one.kind), _last(other.kind))
    )


def _is_counted(before: ReferenceModel, name: str, key: str, new: Any, shortened: Shortened) -> bool:
    """Whether an attribute differs only as layer places, layer counts and schedules do.

    Fractions (stochastic depth) follow the new place; the proof verifies that nothing depends on them in eval mode.
    """
    old = before.forms[name].plain.get(key)
    if type(old) is float and type(new) is float:
        return True
    if type(old) is int and type(new) is int:
        places = list(shortened.places(name))
        for fqn, i, j in places:
            step = _step(_series(before, fqn, i, name, key))
            if step is not None and old - new == step * (i - j):
                return True
        return not places and old - new in shortened.counts
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return is_shortened_list(cast("Sequence[Any]", old), cast("Sequence[Any]", new), shortened.removed.values())
    return isinstance(old, Mapping) and isinstance(new, Mapping)


def is_shortened_list(old: Sequence[Any], new: Sequence[Any], removals: Iterable[Sequence[int]]) -> bool:
    """Whether a list is another list without entries of removed layers, or a shorter list of places or schedule."""
    for gone in removals:
        if list(new) in ([v for i, v in enumerate(old) if i not in gone], renumbered(list(old), gone, _MOST_LAYERS)):
            return True
    rising = all(type(a) in (int, float) and a < b for a, b in pairwise(old)) and type(old[-1]) in (int, float)
    return len(new) < len(old) and rising and (type(old[-1]) is float or list(new) == list(old[: len(new)]))


def renumbered(value: Any, gone: Sequence[int], size: int) -> Any:
    """A field of layer numbers after the removal; None where its value cannot be layer numbers."""
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


def _series(before: ReferenceModel, fqn: str, place: int, name: str, key: str) -> list[tuple[int, int]]:
    below = name.removeprefix(f"{fqn}.{place}")
    found: list[tuple[int, int]] = []
    for i in range(_MOST_LAYERS):
        if f"{fqn}.{i}" not in before.forms:
            break
        form = before.forms.get(f"{fqn}.{i}{below}")
        value = None if form is None else form.plain.get(key)
        if type(value) is int:
            found.append((i, value))
    return found


def _step(series: Sequence[tuple[int, int]]) -> int | None:
    """Slope of a series; None where it is no straight line."""
    if len(series) < 2:
        return 1
    steps = {(b - a, j - i) for (i, a), (j, b) in pairwise(series)}
    rates = {rise / run for rise, run in steps}
    rate = next(iter(rates))
    return int(rate) if len(rates) == 1 and rate == int(rate) and rate > 0 else None


def _lists_differ(before: ReferenceModel, after: ReferenceModel, shortened: Shortened) -> Iterator[str]:
    """Lists of layers in configs that do not name the remaining layers, or can no longer be read."""
    if before.model is None or after.model is None:
        return
    configs = dict(inner_configs(cast(Any, after.model).config))
    for path, config in inner_configs(cast(Any, before.model).config):
        for name, old in _lists(config).items():
            try:
                new = getattr(configs.get(path), name)
            except _UNREADABLE:
                yield f"config.{name} can no longer be read"
                continue
            if not isinstance(new, (list, tuple)):
                continue
            new = cast("Sequence[Any]", new)
            for fqn, gone in shortened.removed.items():
                counted = len(old) == shortened.sizes[fqn] and len(new) == len(old) - len(gone)
                if counted and not is_shortened_list(old, new, shortened.removed.values()):
                    yield f"config.{name} would be {_brief(list(new))}"


def _lists(config: Any) -> dict[str, Sequence[Any]]:
    derived = [
        name
        for cls in type(config).__mro__
        for name, value in vars(cls).items()
        if isinstance(value, property) and "layer" in name
    ]
    found: dict[str, Sequence[Any]] = {}
    for name in dict.fromkeys([*vars(config), *derived]):
        try:
            value = getattr(config, name)
        except _UNREADABLE:
            continue
        if isinstance(value, (list, tuple)):
            found[name] = cast("Sequence[Any]", value)
    return found


def _named(name: str, key: str = "") -> str:
    return f"'{name}{'.' if name and key else ''}{key}'" if name or key else "the model"


def _last(kind: str) -> str:
    return kind.rpartition(".")[2]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
