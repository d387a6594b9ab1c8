"""Changes: new values for a model's tensors, written all at once or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write values into a model's parameters and buffers; whatever happens meanwhile leaves all of them or none.

    Args:
        model: the model; its tensors stay the same objects. A parameter that a module has a place for and that is None
            becomes a new one.
        values: new values by name, of the tensors' shapes.
    """
    before: list[tuple[nn.Module, str, Tensor | None, Tensor | None]] = []
    try:
        with torch.no_grad():
            for name, value in values.items():
                owner, _, key = name.rpartition(".")
                module = model.get_submodule(owner)
                held = module._parameters.get(key) if key in module._parameters else module._buffers[key]
                before.append((module, key, held, None if held is None else held.detach().clone()))
                if held is None:
                    module.register_parameter(key, nn.Parameter(value.clone()))
                else:
                    held.copy_(value)
    except BaseException:
        with torch.no_grad():
            for module, key, held, old in before:
                if held is None or old is None:
                    module.register_parameter(key, None)
                else:
                    held.copy_(old)
        raise
