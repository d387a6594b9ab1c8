"""Updates generation config fields that name layers by number when layers are removed.

Whisper's ``alignment_heads`` are pairs (decoder layer, head) for timestamps of words. No forward reads them, so no
proof covers them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from layerprune.errors import SurgeryError
from layerprune.modules import names_by_module

#: The numbers of the removed elements of each container, by its dotted name.
Removed = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Field:
    """The config field ``key`` that names layers of containers ``stacks``; ``held`` are the config's attributes."""

    held: dict[str, Any]
    key: str
    stacks: tuple[str, ...]

    @property
    def layers(self) -> list[int]:
        return _layers(self.held[self.key])

    @property
    def is_pairs(self) -> bool:
        """Whether the field lists pairs (layer, part of it); a plain number may also count hidden states."""
        return isinstance(self.held[self.key], list) and isinstance(self.held[self.key][0], (list, tuple))

    def gone(self, removed: Removed) -> list[set[int]]:
        return [set(removed[fqn]) for fqn in self.stacks if fqn in removed]

    def follows(self, removed: Removed) -> bool:
        """Whether the change of the field is known: pairs, and one affected container."""
        return self.is_pairs and len(self.gone(removed)) == 1

    def without(self, removed: Removed) -> list[list[int]]:
        (gone,) = self.gone(removed)
        pairs = cast("list[Sequence[int]]", self.held[self.key])
        return [[layer - sum(i < layer for i in gone), *rest] for layer, *rest in pairs if layer not in gone]

    def counted_otherwise(self, stood_in: Collection[str]) -> str | None:
        """A stand-in among the counted layers: the forward of a listed layer may no longer read the encoder."""
        for fqn in self.stacks if self.is_pairs else ():
            for name in stood_in:
                key, _, below = name.removeprefix(f"{fqn}.").partition(".")
                counted = not below or any(word in below.lower() for word in ("enc", "cross"))
                if name.startswith(f"{fqn}.") and key.isdigit() and counted and int(key) <= max(self.layers):
                    return name
        return None


def generation_config_changes(model: nn.Module, removed: Removed) -> list[tuple[dict[str, Any], str, Any]]:
    """Return changes (attributes, name, value) of generation configs, for elements that leave containers.

    ``removed`` are numbers of elements by their container's dotted name; the model still has them.
    """
    return [(field.held, field.key, field.without(removed)) for field in _fields(model) if field.follows(removed)]


def check_generation_config(model: nn.Module, removed: Removed, stood_in: Collection[str]) -> None:
    """Refuse removals that a generation config cannot follow; a stand-in replaces the modules ``stood_in``.

    Raises:
        SurgeryError: a field would name other layers than before, or no layer.
    """
    for field in _fields(model):
        where = f"generation_config.{field.key}"
        free = f"delete the field before pruning if nothing reads it: del model.{where}"
        if name := field.counted_otherwise(stood_in):
            raise SurgeryError(
                f"a stand-in would be left at '{name}', and {where} names layers behind it by their number; {free}"
            )
        if any(min(some) <= max(field.layers) for some in field.gone(removed)):
            if not field.follows(removed):
                raise SurgeryError(f"{where} names layers, and it is not known how it would follow; {free}")
            if not field.without(removed):
                raise SurgeryError(f"{where} would name no layer any more; {free}")


def _fields(model: nn.Module) -> Iterator[Field]:
    done: set[int] = set()
    for module in model.modules():
        config = vars(module).get("generation_config")
        if config is None or id(config) in done:
            continue
        done.add(id(config))
        held = cast("dict[str, Any]", vars(config))
        keys = [key for key, value in held.items() if _names_layers(key) and _layers(value)]
        if keys:
            stacks = _stacks(model, module)
            yield from (Field(held, key, stacks) for key in keys)


def _names_layers(key: str) -> bool:
    words = key.lstrip("_").split("_")
    return not {"num", "n"} & set(words) and bool({"layer", "layers", "head", "heads", "exit"} & set(words))


def _layers(value: Any) -> list[int]:
    if type(value) is int:
        return [value]
    if not isinstance(value, (list, tuple)):
        return []
    entries = [entry[0] if isinstance(entry, (list, tuple)) and entry else entry for entry in cast("list[Any]", value)]
    return cast("list[int]", entries) if all(type(entry) is int for entry in entries) else []


def _stacks(model: nn.Module, module: nn.Module) -> tuple[str, ...]:
    get = getattr(module, "get_decoder", None)
    decoder = get() if callable(get) else module
    decoder = decoder if isinstance(decoder, nn.Module) else module
    found: list[str] = []
    for name in names_by_module(model).get(id(decoder), []):
        inner: list[str] = []
        for below, part in decoder.named_modules(remove_duplicate=False):
            if isinstance(part, nn.ModuleList) and not any(below.startswith(f"{outer}.") for outer in inner):
                inner.append(below)
        found += [".".join(filter(None, (name, below))) for below in inner]
    return tuple(found)
