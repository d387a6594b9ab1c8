"""Finds the transformers modules inside wrappers of another library.

peft replaces a linear layer by a module that holds the layer and a low-rank branch. The builder of the model wraps it
again, before a removal and after it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from layerprune.adapters.transformers.reference_model import Form
from layerprune.torch_internals import children_of


def unwrapped(modules: Mapping[str, nn.Module], own: Mapping[str, Form], built: Mapping[str, Form]) -> dict[str, str]:
    """Map names of modules that transformers builds (forms ``built``) to names in the model (forms ``own``).

    A module that differs from the one built in its place is a wrapper: its only matching child takes its place, and its
    other children are left out.
    """
    found: dict[str, str] = {}
    pending = [("", "")]  # name in the reference model, name in the model
    while pending:
        name, place = pending.pop()
        if name in built and not _is_like(own[place], built[name]):
            inner = [key for key in children_of(modules[place]) if _is_like(own.get(_join(place, key)), built[name])]
            place = _join(place, inner[0]) if len(inner) == 1 else place
        found[name] = place
        parts = children_of(modules[place]).items()
        pending += [(_join(name, key), _join(place, key)) for key, part in parts if part is not None]
    return found


def _is_like(one: Form | None, other: Form) -> bool:
    return one is not None and one.kind == other.kind and one.tensors == other.tensors


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
