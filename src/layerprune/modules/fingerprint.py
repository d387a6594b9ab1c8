"""The structure of a model as text lines, to say where another model differs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from layerprune.torch_internals import tensors_of, unsaved_buffers

# "weight(8, 3) float32": a dtype of weights, which say nothing about the structure where they come from a file.
_FLOATS = re.compile(r"\) b?float\w+")


def structure(model: nn.Module) -> tuple[str, ...]:
    """Describe a model, one module a line: its name, its class, its parameters and buffers.

    As in the fingerprint, buffers that are not saved with a model are left out.

    >>> structure(nn.Sequential(nn.Linear(2, 3)))
    (': Sequential', '0: Linear weight(3, 2) float32, bias(3) float32')
    """
    lines: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        tensors = ", ".join(
            f"{key}({', '.join(map(str, tensor.shape))}) {str(tensor.dtype).removeprefix('torch.')}"
            for key, tensor in tensors_of(module)
            if key not in unsaved_buffers(module)
        )
        lines.append(f"{name}: {type(module).__qualname__} {tensors}".rstrip())
    return tuple(lines)


def difference(expected: Sequence[str], found: Sequence[str], *, dtypes: bool = True) -> str:
    """Say where two structures first differ; empty where they do not.

    Args:
        expected: the structure of the plan's model.
        found: the structure of the model at hand.
        dtypes: whether other floating-point dtypes are a difference.
    """
    there = dict(_split(line, dtypes) for line in found)
    for line in expected:
        name, form = _split(line, dtypes)
        if name not in there:
            return f"it has no module '{name}', the plan's model has ({form})"
        if there[name] != form:
            return f"{_named(name)} is ({there[name]}), in the plan's model ({form})"
        del there[name]
    for name, form in there.items():
        return f"the plan's model has no module '{name}', it has ({form})"
    return ""


def _split(line: str, dtypes: bool) -> tuple[str, str]:
    name, _, form = line.partition(": ")
    return name, form if dtypes else _FLOATS.sub(")", form)


def _named(name: str) -> str:
    return f"'{name}'" if name else "the model itself"
