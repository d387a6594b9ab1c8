"""Updates timm's ``feature_info`` when elements leave an ``nn.Sequential``.

``feature_info`` names a module per feature; lists as ``feature_ends`` hold the places of these modules among the
elements that ``forward_intermediates`` counts. No forward reads them, so no proof covers them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

from torch import nn

from layerprune.torch_internals import children_of

Entry = dict[str, Any]


def feature_info_changes(model: nn.Module, deleted: Collection[str]) -> list[tuple[dict[str, Any], str, Any]]:
    """Return changes (attributes, name, value) for elements that leave containers; other elements keep their keys.

    A feature of a removed element moves to the element before it, which now ends the same run; if that element has a
    feature already, the feature is dropped. ``deleted`` are dotted names of elements; the model still has them.
    """
    found: list[tuple[dict[str, Any], str, Any]] = []
    for prefix, module in model.named_modules() if deleted else ():
        entries = _entries(module)
        own = {name.removeprefix(f"{prefix}.") if prefix else name for name in deleted}
        if entries:
            found += _followed(module, entries, own)
    return found


def _entries(module: nn.Module) -> list[Entry]:
    info = vars(module).get("feature_info")
    entries = cast("list[Any]", info) if isinstance(info, list) else []
    return entries if all(isinstance(one, dict) and isinstance(one.get("module"), str) for one in entries) else []


def _followed(module: nn.Module, entries: list[Entry], deleted: set[str]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    modules = dict(module.named_modules())
    names = [_instead(entry["module"], modules, deleted) for entry in entries]
    kept = [i for i, name in enumerate(names) if name is not None and name not in names[:i]]
    held = vars(module)
    new = [{**entries[i], "module": names[i]} for i in kept]
    if new != entries:
        yield held, "feature_info", new
    before = [_place(entry["module"], modules, ()) for entry in entries]
    after = [_place(cast(str, names[i]), modules, deleted) for i in kept]
    if after != before:
        for key, value in held.items():
            if isinstance(value, (list, tuple)) and list(cast("list[Any]", value)) == before:
                yield held, key, type(value)(after)


def _instead(name: str, modules: Mapping[str, nn.Module], deleted: Collection[str]) -> str | None:
    """New module of a feature; None where no element is left before it in its container."""
    gone = next((one for one in deleted if f"{name}.".startswith(f"{one}.")), None)
    if gone is None:
        return name
    parent, _, key = gone.rpartition(".")
    siblings = list(children_of(modules[parent])) if parent in modules else []
    earlier = siblings[: siblings.index(key)] if key in siblings else []
    left = [f"{parent}.{one}" if parent else one for one in earlier]
    return next((one for one in reversed(left) if one not in deleted), None)


def _place(name: str, modules: Mapping[str, nn.Module], deleted: Collection[str]) -> int | None:
    """Place of a module among the elements of its container."""
    parent, _, key = name.rpartition(".")
    held = modules.get(parent)
    if not isinstance(held, nn.Sequential):
        return None
    left = [one for one in children_of(held) if (f"{parent}.{one}" if parent else one) not in deleted]
    return left.index(key) if key in left else None
