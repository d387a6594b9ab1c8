"""The module tree: unwrapping, cloning, finding where a module hangs, and telling two models apart."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from layerprune.dropped import Dropped
from layerprune.errors import UnsupportedModelError

_ATOMS = (int, float, bool, str, bytes, complex, type(None), type, torch.dtype, torch.device, torch.Size)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module from under ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = cast(nn.Module, model.module)
        elif "_orig_mod" in model._modules:  # torch.compile's OptimizedModule
            model = cast(nn.Module, model._modules["_orig_mod"])
        else:
            return model


def check_supported(model: object) -> None:
    """Raise :class:`UnsupportedModelError` for what cannot be recorded at all: no module, scripted, lazy."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"'{name}'" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{where} is a TorchScript module ({type(module).__name__}): its forward is compiled and cannot "
                "be edited; pass the Python module that it was scripted from"
            )
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                raise UnsupportedModelError(
                    f"{where} is lazy: its '{key}' has no shape yet; run one forward on real inputs first, then prune"
                )


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer under every name it has, parameters first in each module."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield (f"{prefix}.{key}" if prefix else key), tensor


def slots(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Map ``id(module)`` to every (parent, key) under which the tree holds it."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is not None:
                found.setdefault(id(child), []).append((parent, key))
    return found


def names_by_module(model: nn.Module) -> dict[int, list[str]]:
    """Map ``id(module)`` to all its dotted names, shortest way first as ``named_modules`` finds them."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def num_params(model: nn.Module) -> int:
    """Count the model's parameters; tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def names_with_nan(model: nn.Module) -> list[str]:
    """The parameters that hold values which are not numbers."""
    with torch.no_grad():
        return [
            name
            for name, parameter in model.named_parameters()
            if not parameter.is_meta and parameter.is_floating_point() and bool(parameter.detach().sum().isnan())
        ]


def fingerprint(model: nn.Module, *, paths: bool = False, caches: bool = False) -> str:
    """Return a hash of the model's classes, tensor names, shapes and dtypes; not of its weights or its device.

    Buffers that are not saved with the model are left out: many are caches that a forward fills for its inputs' size.

    Args:
        model: the model.
        paths: name the classes with the Python modules that define them, as plans of the first weeks did.
        caches: include the buffers that are left out, as plans of schema 1 did.
    """
    digest = hashlib.sha256()
    unsaved: set[str] = set()
    for name, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}" if paths else type(module).__qualname__
        digest.update(f"{name}:{kind};".encode())
        unsaved |= {f"{name}.{key}" if name else key for key in module._non_persistent_buffers_set}
    for name, tensor in named_tensors(model):
        if caches or name not in unsaved:
            digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
    return digest.hexdigest()


def clone(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy the module tree with every tensor passed through ``convert``; the original is not touched.

    Unlike ``copy.deepcopy`` this cannot fail: every module is copied shell by shell, tensors (non-leaf ones and those
    hidden in attributes too) go through ``convert`` once each, so ties survive, and an attribute that cannot be copied
    (an open file, a lock) is shared.

    Args:
        model: the module tree; its modules' classes are kept.
        convert: the new tensor for an old one, e.g. a clone, the tensor itself, or a fake of it.

    Returns:
        The copy, of the same class, with the same training flags and hooks.
    """
    memo: dict[int, Any] = {}
    modules = list(model.modules())
    for module in modules:
        memo[id(module)] = object.__new__(type(module))
    for module in modules:
        for tensor in _own_tensors(module):
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor if isinstance(tensor, Dropped) else convert(tensor)
    for module in modules:
        shell = memo[id(module)]
        for key, value in vars(module).items():
            shell.__dict__[key] = _copy_value(value, memo)
    return memo[id(model)]


def own(tensor: Tensor) -> Tensor:
    """Copy a tensor; a parameter stays one."""
    with torch.no_grad():
        copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad) if tensor.requires_grad else copy


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a module's attributes hold, down to three containers deep."""
    # Most of a module's attributes are flags and empty registries.
    stack: list[tuple[Any, int]] = [
        (value, 0) for value in vars(module).values() if not isinstance(value, _ATOMS) and _full(value)
    ]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, Tensor):
            yield value
        elif depth < 3 and isinstance(value, Mapping):
            stack += [(item, depth + 1) for item in cast("Mapping[Any, Any]", value).values()]
        elif depth < 3 and isinstance(value, (list, tuple)):
            stack += [(item, depth + 1) for item in cast("list[Any]", value)]


def _full(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, (Mapping, list, tuple)) and len(cast("list[Any]", value)) > 0
    )


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, _ATOMS):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if type(value) is dict or type(value).__name__ == "OrderedDict":
        # Mostly a module's own registries: copied here because deepcopy is slow on hundreds of small empty dicts.
        same = type(value)()
        memo[id(value)] = same
        for key, item in value.items():
            same[key] = _copy_value(item, memo)
        return same
    if isinstance(value, FunctionType):
        return _rebound(value, memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # deepcopy runs the user's own code, which may raise anything; sharing is the safe way out
        return value


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A function whose closure holds modules or tensors of the model, holding those of the copy instead.

    A forward that was replaced by hand (``module.forward = lambda x: old(x) + 1``) would run the original's layers.
    """
    memo[id(function)] = function  # where it closes over itself
    defaults = function.__defaults__ or ()
    held = [_held(cell) for cell in function.__closure__ or ()]
    new = [_rebound_value(value, memo) for value in (*held, *defaults)]
    if all(a is b for a, b in zip(new, (*held, *defaults), strict=True)):
        return function
    old = zip(function.__closure__ or (), held, new, strict=False)
    cells = tuple(cell if before is after else CellType(after) for cell, before, after in old)
    code, names = function.__code__, function.__globals__
    same = FunctionType(code, names, function.__name__, tuple(new[len(held) :]) or None, cells)
    same.__kwdefaults__ = function.__kwdefaults__
    same.__dict__.update(function.__dict__)
    memo[id(function)] = same
    return same


_EMPTY = object()


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing assigned yet
        return _EMPTY


def _rebound_value(value: Any, memo: dict[int, Any]) -> Any:
    """What a closure holds, bound to the copy; the closure's own state (lists, counters) stays shared."""
    if isinstance(value, MethodType) and id(value.__self__) in memo:
        return MethodType(value.__func__, memo[id(value.__self__)])
    if isinstance(value, FunctionType) and id(value) not in memo:
        return _rebound(value, memo)
    return memo.get(id(value), value) if isinstance(value, (nn.Module, Tensor, FunctionType)) else value
