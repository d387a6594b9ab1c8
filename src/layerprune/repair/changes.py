"""Changes: new values for a model's tensors, written all at once or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write values into a model's parameters and buffers; whatever happens meanwhile leaves all of them or none.

    Args:
        model: the model; its tensors stay the same objects.
        values: new values by name, of the tensors' shapes.
    """
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for name, value in values.items():
                before.append((held[name], held[name].detach().clone()))
                held[name].copy_(value)
    except BaseException:
        with torch.no_grad():
            for tensor, old in before:
                tensor.copy_(old)
        raise
