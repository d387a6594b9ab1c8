"""The structure of a model as text lines, to show where two models differ."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from layerprune.torch_internals import tensors_of, unsaved_buffers

# "weight(8, 3) float32": weights from a file may have another dtype without another structure.
_FLOATS = re.compile(r"\) b?float\w+")


def structure(model: nn.Module) -> tuple[str, ...]:
    """Describe a model, one line per module: name, class, parameters and buffers.

    Buffers that are not saved with the model are left out, as in the fingerprint.

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
    """Describe the first difference between two structures; empty if there is none.

    Without ``dtypes``, floating-point dtypes may differ.
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
