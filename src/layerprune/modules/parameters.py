"""Every parameter and buffer that modules hold, whatever a user's class reports.

A class may override ``parameters()`` to tell an optimiser less than there is, as meta-learners do. All of it is
counted, copied and guarded.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def named_parameters(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters below a module with their dotted names.

    Args:
        model: the module.
        every_name: whether a parameter that hangs in several places is yielded under each of its names.
    """
    return nn.Module.named_parameters(model, remove_duplicate=not every_name)


def parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters below a module, each once."""
    return (parameter for _, parameter in named_parameters(model))


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers below a module with their dotted names, each once."""
    return nn.Module.named_buffers(model)


def buffers(model: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers below a module, each once."""
    return (buffer for _, buffer in named_buffers(model))
