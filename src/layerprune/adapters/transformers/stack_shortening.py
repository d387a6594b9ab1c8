"""Takes layers out of a container and renumbers the others; a transformers model's config and modules are adapted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import nn

from layerprune.adapters.transformers.config_search import find_config
from layerprune.adapters.transformers.example_inputs import builds_from_config
from layerprune.adapters.transformers.reference_diff import Shortened, is_exchangeable
from layerprune.adapters.transformers.reference_model import (
    Form,
    Origin,
    ReferenceModel,
    forms,
    inner_configs,
    is_plain,
    owner_of,
    reference_model_of,
)
from layerprune.adapters.transformers.wrapped import unwrapped
from layerprune.errors import SurgeryError
from layerprune.modules import UndoLog
from layerprune.torch_internals import children_of

_Step = Callable[[UndoLog], None]
_UNSAVED = ("_name_or_path", "transformers_version")
_ABSENT = object()


def shorten_stacks(model: nn.Module, removed: Mapping[str, Sequence[int]]) -> Callable[[UndoLog], None]:
    """Prepare the removal of elements from containers.

    For each outermost transformers model, a shortened config must build the remaining modules with their shapes and
    plain attributes. Other containers are only renumbered. Everything is decided on the model as it is now; edits of
    other modules may precede the call of the result.

    Args:
        model: the module tree.
        removed: the numbers of the removed elements of each container, by its dotted name.

    Returns:
        A function that carries out the removal, and records the changes in an undo log.

    Raises:
        SurgeryError: vanilla transformers would not build the remaining model; the message names the difference.
    """
    sorted_ = stacks_by_owner(model, removed)
    steps = [_plainly(model, fqn, gone) for fqn, gone in sorted_.pop(None, {}).items()]
    steps += [
        step
        for owner, inside in sorted_.items()
        for step in _Shortening(model.get_submodule(owner or ""), inside).steps
    ]

    def carry_out(undo_log: UndoLog) -> None:
        for step in steps:
            step(undo_log)

    return carry_out


def stacks_by_owner(
    model: nn.Module, removed: Mapping[str, Sequence[int]]
) -> dict[str | None, dict[str, Sequence[int]]]:
    """Group containers by their outermost transformers model (None without one), with names relative to it."""
    found: dict[str | None, dict[str, Sequence[int]]] = {}
    for fqn, gone in removed.items():
        owner = owner_of(model, fqn)
        found.setdefault(owner, {})[fqn[len(owner) + 1 :] if owner else fqn] = gone
    return found


def _plainly(model: nn.Module, fqn: str, gone: Sequence[int]) -> _Step:
    container = dict(model.named_modules(remove_duplicate=False)).get(fqn)
    size = _size(container, fqn, gone)
    assert container is not None
    return _renumbering(container, [i for i in range(size) if i not in gone])


class Stack:
    """A transformers model as it is now, for questions about possible removals."""

    def __init__(self, model: nn.Module) -> None:
        self.origin = Origin.of(model)
        self.twin = reference_model_of(self.origin)
        modules, own = dict(model.named_modules(remove_duplicate=False)), forms(model)
        places = unwrapped(modules, own, self.twin.forms)
        self.modules = {name: modules[place] for name, place in places.items()}
        self.refusal = _foreign({name: own[place] for name, place in places.items()}, self.twin, self.modules)

    def shortened(self, removed: Mapping[str, Sequence[int]]) -> Shortened:
        gone = {fqn: tuple(sorted(set(some))) for fqn, some in sorted(removed.items())}
        return Shortened(gone, {fqn: _size(self.modules.get(fqn), fqn, some) for fqn, some in gone.items()})

    def find(self, shortened: Shortened) -> Origin:
        """Find the config that builds the remaining model; raises :class:`SurgeryError` where there is none."""
        if self.refusal:
            raise SurgeryError(self.refusal)
        found = find_config(self.origin, tuple(shortened.removed.items()), tuple(shortened.sizes.values()))
        if found.reason:
            raise SurgeryError(found.reason)
        return found.origin


class _Shortening:
    def __init__(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        stack = Stack(model)
        self.modules = stack.modules
        self.shortened = stack.shortened(removed)
        self.before = stack.twin
        self.after = reference_model_of(stack.find(self.shortened))
        self.steps = [*self.attributes(), *self.configs(), *self.exchanges(), *self.containers()]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Old name of each surviving module, and its name in the reference model of the shortened config."""
        for name in self.after.forms:
            old = self.shortened.original(name)
            if old is not None and old in self.modules:
                yield old, name

    def attributes(self) -> Iterator[_Step]:
        """Plain attributes that differ between the two reference models: layer places and layer counts."""
        for old, new in self.pairs():
            before, after = self.before.forms[old].plain, self.after.forms[new].plain
            if before == after or self.before.forms[old].kind != self.after.forms[new].kind:
                continue
            held = vars(self.modules[old])
            for key in before.keys() | after.keys():
                if before.get(key, _ABSENT) == after.get(key, _ABSENT):
                    continue
                if held.get(key, _ABSENT) != before.get(key, _ABSENT):
                    raise SurgeryError(f"'{old}.{key}' is {held.get(key)!r}, not what the config says")
                yield _setting(held, key, after.get(key, _ABSENT))

    def configs(self) -> Iterator[_Step]:
        """Fields that differ in the configs of the modules, each config once."""
        assert self.before.model is not None
        assert self.after.model is not None
        befores = dict(self.before.model.named_modules(remove_duplicate=False))
        afters = dict(self.after.model.named_modules(remove_duplicate=False))
        done: set[int] = set()
        for old, new in self.pairs():
            config = vars(self.modules[old]).get("config")
            if config is None or id(config) in done or not hasattr(config, "to_dict"):
                continue
            told = [dict(inner_configs(vars(twin[name])["config"])) for twin, name in ((befores, old), (afters, new))]
            for path, inner in inner_configs(config):
                if id(inner) not in done and path in told[0] and path in told[1]:
                    done.add(id(inner))
                    yield from _changes(vars(inner), vars(told[0][path]), vars(told[1][path]))

    def exchanges(self) -> Iterator[_Step]:
        """Modules that vanilla builds differently at another place: an Identity for a drop of rate 0."""
        assert self.after.model is not None
        for old, new in self.pairs():
            before, after = self.before.forms[old], self.after.forms[new]
            if before.kind != after.kind and is_exchangeable(before, after):
                parent, _, key = old.rpartition(".")
                module = copy.deepcopy(self.after.model.get_submodule(new))
                module.train(self.modules[old].training)
                yield _setting(cast("dict[str, Any]", children_of(self.modules[parent])), key, module)

    def containers(self) -> Iterator[_Step]:
        for fqn, kept in self.shortened.kept.items():
            yield _renumbering(self.modules[fqn], kept)


def _size(container: nn.Module | None, fqn: str, gone: Sequence[int]) -> int:
    if not isinstance(container, (nn.ModuleList, nn.Sequential)):
        raise SurgeryError(f"'{fqn}' is no nn.ModuleList or nn.Sequential; was it pruned already?")
    size = len(children_of(container))
    if list(children_of(container)) != [str(i) for i in range(size)]:
        raise SurgeryError(f"the elements of '{fqn}' are not numbered one after the other")
    if not all(0 <= i < size for i in gone):
        raise SurgeryError(f"'{fqn}' has {size} elements, not the numbers {', '.join(map(str, gone))}")
    if len(gone) >= size:
        raise SurgeryError(f"'{fqn}' would have no element left")
    return size


def _foreign(own: Mapping[str, Form], twin: ReferenceModel, modules: Mapping[str, nn.Module]) -> str:
    """Why a model is not the one that transformers builds from its own config; empty where it is."""
    if twin.model is None:
        return f"transformers does not build the model from its own config: {twin.reason}"
    for name in own.keys() | twin.forms.keys():
        one, other = own.get(name), twin.forms.get(name)
        if one is None and _is_left_empty(name, modules):
            continue
        if one is None or other is None or one.kind != other.kind or one.tensors != other.tensors:
            return f"the model is not what transformers builds from its config: '{name}' is another module"
    return ""


def _is_left_empty(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a constructor's argument, not the config, leaves a module None, as ``add_pooling_layer=False``."""
    while name not in modules:
        name, _, key = name.rpartition(".")
        if name in modules:
            return builds_from_config(modules[name]) and getattr(modules[name], key, _ABSENT) is None
    return False


def _changes(held: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[_Step]:
    for key in before.keys() | after.keys():
        old, new = before.get(key, _ABSENT), after.get(key, _ABSENT)
        known = all(value is _ABSENT or is_plain(value) for value in (old, new))
        if known and old != new and key not in _UNSAVED:
            yield _setting(held, key, new)


def _setting(held: dict[str, Any], key: str, new: Any) -> _Step:
    """Set or delete an entry; the undo log also restores the order of the entries."""

    def carry_out(undo_log: UndoLog) -> None:
        if new is not _ABSENT:
            undo_log.set(held, key, new if isinstance(new, nn.Module) else copy.deepcopy(new))
        elif key in held:
            undo_log.keep(held)
            del held[key]

    return carry_out


def _renumbering(container: nn.Module, kept: Sequence[int]) -> _Step:
    def carry_out(undo_log: UndoLog) -> None:
        held = cast("dict[str, Any]", children_of(container))
        left = {str(new): held[str(old)] for new, old in enumerate(kept)}
        undo_log.keep(held)
        held.clear()
        held.update(left)

    return carry_out
