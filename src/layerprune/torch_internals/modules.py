"""The live dicts of an ``nn.Module``: its own parameters, buffers, children and hooks.

Public ways do not reach these: ``named_parameters`` leaves out None, and ``getattr`` may run the user's code.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules import module as machinery

#: The attributes that hold a module's parameters, buffers and children.
MODULE_DICTS = ("_parameters", "_buffers", "_modules")
#: The attributes that hold a module's hooks.
HOOK_DICTS = (
    *("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks"),
)
#: The hooks that every module runs.
GLOBAL_HOOKS = (machinery._global_forward_hooks, machinery._global_forward_pre_hooks)
#: The code with which torch calls a module: the next inner frame is the module's forward, or a hook.
MODULE_CALL = nn.Module._call_impl.__code__
MODULE_CALLS = frozenset({MODULE_CALL, *(const for const in MODULE_CALL.co_consts if isinstance(const, CodeType))})


class FollowsCasts(nn.Module, ABC):
    """A module without parameters that follows ``half()``, ``to()`` and other casts."""

    @abstractmethod
    def follow(self, cast_of: Callable[[Tensor], Tensor]) -> None:
        """Follow a cast: the model's tensors become ``cast_of`` of each."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.follow(fn)
        return self


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own buffers."""
    return module._buffers


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """A module's own children."""
    return module._modules


def tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters, then its own buffers, without None."""
    held = (*module._parameters.items(), *module._buffers.items())
    return [(key, tensor) for key, tensor in held if tensor is not None]


def registry_of(module: nn.Module, key: str) -> dict[str, Any]:
    """The dict of a module that holds a key: its parameters, or its buffers for a key that names no parameter."""
    return cast("dict[str, Any]", module._parameters if key in module._parameters else module._buffers)


def unsaved_buffers(module: nn.Module) -> set[str]:
    """The names of a module's own buffers that its ``state_dict`` leaves out."""
    return module._non_persistent_buffers_set


def with_parameters(module: nn.Module, parameters: Mapping[str, nn.Parameter | None]) -> nn.Module:
    """A shallow copy of a module with other parameters."""
    other = copy.copy(module)
    vars(other)["_parameters"] = dict(parameters)
    return other


def pre_hooks_of(module: nn.Module) -> dict[int, Callable[..., Any]]:
    """A module's own forward pre-hooks."""
    return module._forward_pre_hooks


def hooks_of(module: nn.Module) -> tuple[dict[int, Callable[..., Any]], ...]:
    """A module's own forward hooks and forward pre-hooks."""
    return module._forward_hooks, module._forward_pre_hooks


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks or pre-hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
