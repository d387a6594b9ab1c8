"""Finds the transformers modules inside the modules that another library put around them.

peft puts a module with a low-rank branch in the place of a linear layer, which it holds. Whoever builds the model puts
that around it again, before a removal and after it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from layerprune.adapters.transformers.reference_model import Form
from layerprune.torch_internals import children_of


def unwrapped(modules: Mapping[str, nn.Module], own: Mapping[str, Form], built: Mapping[str, Form]) -> dict[str, str]:
    """Where the modules that transformers builds are in a model: their names → their names in the model.

    A module stands for the one that is built in its place if it is like it; else its only part that is like it does,
    and what else the module holds is left out.

    Args:
        modules: the model's modules, by all their names.
        own: their forms.
        built: the forms of what transformers builds.
    """
    found: dict[str, str] = {}
    pending = [("", "")]  # a name as it is built, and as it is in the model
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
