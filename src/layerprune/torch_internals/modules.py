"""What an ``nn.Module`` holds, alive: its own parameters, buffers, parts and hooks.

torch has no public door to these: ``named_parameters`` leaves out those that are None, and ``getattr`` may run a user's
code.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules import module as machinery

#: The attributes that hold a module's parameters, buffers and parts.
MODULE_DICTS = ("_parameters", "_buffers", "_modules")
#: The attributes that hold a module's hooks.
HOOK_DICTS = (
    *("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks"),
)
#: The hooks that every module runs.
GLOBAL_HOOKS = (machinery._global_forward_hooks, machinery._global_forward_pre_hooks)
#: How torch calls a module, from outside: the frame inside these is the module's forward, or a hook.
MODULE_CALL = nn.Module._call_impl.__code__
MODULE_CALLS = frozenset({MODULE_CALL, *(const for const in MODULE_CALL.co_consts if isinstance(const, CodeType))})


class FollowsCasts(nn.Module):
    """A module without parameters that is told of ``half()``, ``to()`` and the like."""

    def follow(self, cast_of: Callable[[Tensor], Tensor]) -> None:
        """Do as the model's tensors do, of which each becomes what ``cast_of`` makes of it."""
        raise NotImplementedError

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
    """The modules that hang right under one."""
    return module._modules


def tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters, then its own buffers; those that are None left out."""
    held = (*module._parameters.items(), *module._buffers.items())
    return [(key, tensor) for key, tensor in held if tensor is not None]


def registry_of(module: nn.Module, key: str) -> dict[str, Any]:
    """Those of a module's parameters or buffers among which one lies: the buffers where it is no parameter."""
    return cast("dict[str, Any]", module._parameters if key in module._parameters else module._buffers)


def unsaved_buffers(module: nn.Module) -> set[str]:
    """The names of a module's own buffers that no ``state_dict`` holds."""
    return module._non_persistent_buffers_set


def with_parameters(module: nn.Module, parameters: Mapping[str, nn.Parameter | None]) -> nn.Module:
    """A shallow copy of a module with other parameters."""
    other = copy.copy(module)
    vars(other)["_parameters"] = dict(parameters)
    return other


def pre_hooks_of(module: nn.Module) -> dict[int, Callable[..., Any]]:
    """A module's own hooks that run before its forward."""
    return module._forward_pre_hooks


def hooks_of(module: nn.Module) -> tuple[dict[int, Callable[..., Any]], ...]:
    """A module's own hooks that run after its forward, and before."""
    return module._forward_hooks, module._forward_pre_hooks


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs before or after a module's own forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
