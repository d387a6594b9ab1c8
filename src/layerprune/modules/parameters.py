"""All parameters and buffers of modules, even if a user's class overrides ``parameters()``.

Meta-learners do so to hide parameters from an optimizer. All must be counted, copied and protected.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def named_parameters(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a module tree with their dotted names.

    Args:
        model: the module.
        every_name: whether to yield a shared parameter under each of its names.
    """
    return nn.Module.named_parameters(model, remove_duplicate=not every_name)


def parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a module tree, each once."""
    return (parameter for _, parameter in named_parameters(model))


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers of a module tree with their dotted names, each once."""
    return nn.Module.named_buffers(model)


def buffers(model: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers of a module tree, each once."""
    return (buffer for _, buffer in named_buffers(model))
