"""The module tree: unwrapping, copies, names, and fingerprints."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from layerprune.modules.copier import ATOMS, PLAIN_TYPES, Copier
from layerprune.modules.parameters import named_parameters, parameters
from layerprune.modules.supported import check_module
from layerprune.stand_ins import DroppedTensor
from layerprune.tensors import is_wrapped
from layerprune.torch_internals import INNER_OF_COMPILED, children_of, tensors_of, unsaved_buffers


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module from ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    Raises:
        UnsupportedModelError: ``model`` is not a module.
    """
    check_module(model)
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = cast(nn.Module, model.module)
        elif INNER_OF_COMPILED in children_of(model):  # torch.compile's OptimizedModule
            model = cast(nn.Module, children_of(model)[INNER_OF_COMPILED])
        else:
            return model


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is transformers' linear layer of GPT-2, whose weight is (input, output)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer under each of its names, parameters first in each module."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, tensor in tensors_of(module):
            yield (f"{prefix}.{key}" if prefix else key), tensor


def slots(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Map ``id(module)`` to every (parent, key) of it in the tree."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for key, child in children_of(parent).items():
            if child is not None:
                found.setdefault(id(child), []).append((parent, key))
    return found


class Tree:
    """Snapshot of a model's module tree."""

    def __init__(self, model: nn.Module) -> None:
        self.before: list[tuple[dict[str, nn.Module | None], list[tuple[str, nn.Module | None]]]] = []
        pending, known = [model], {id(model)}  # as ``model.modules()``, which is several times slower
        while pending:
            held = children_of(pending.pop())
            self.before.append((held, list(held.items())))
            for module in held.values():
                if module is not None and id(module) not in known:
                    known.add(id(module))
                    pending.append(module)

    def put_back(self) -> bool:
        """Restore the places of all modules; returns whether a place had changed."""
        some = [(held, items) for held, items in self.before if held or items]
        moved = [(held, items) for held, items in some if _hung(held.items()) != _hung(items)]
        for held, items in moved:
            held.clear()
            held.update(items)
        return bool(moved)


def _hung(items: Iterable[tuple[str, nn.Module | None]]) -> list[tuple[str, int]]:
    return [(key, id(module)) for key, module in items]


def names_by_module(model: nn.Module, *, only_first: bool = False) -> dict[int, list[str]]:
    """Map ``id(module)`` to all its dotted names, or to the first, in the order of ``named_modules``."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=only_first):
        names.setdefault(id(module), []).append(name)
    return names


def num_params(model: nn.Module) -> int:
    """Number of parameters; tied parameters count once."""
    return sum(parameter.numel() for parameter in parameters(model))


def names_with_nan(model: nn.Module) -> list[str]:
    """Names of parameters with nan values."""
    with torch.no_grad():
        return [
            name
            for name, parameter in named_parameters(model)
            if not is_wrapped(parameter)
            and not parameter.is_meta
            and parameter.is_floating_point()
            and bool(parameter.detach().sum().isnan())
        ]


def fingerprint(model: nn.Module, *, paths: bool = False, caches: bool = False) -> str:
    """Hash of the model's classes, tensor names, shapes and dtypes, without weights and device.

    Buffers that are not saved with the model are left out: many are caches that a forward fills.

    Args:
        model: the model.
        paths: whether to include the classes' Python modules, as the first plans did.
        caches: whether to include unsaved buffers, as plans of schema 1 did.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    digest = hashlib.sha256()
    unsaved: set[str] = set()
    for name, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}" if paths else type(module).__qualname__
        digest.update(f"{name}:{kind};".encode())
        unsaved |= {f"{name}.{key}" if name else key for key in unsaved_buffers(module)}
    for name, tensor in named_tensors(model):
        if caches or name not in unsaved:
            digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
    return digest.hexdigest()


def clone(model: nn.Module, convert: Callable[[Tensor], Tensor], *, apart: bool = False) -> nn.Module:
    """Copy a module tree with ``convert`` applied to every tensor; the original stays unchanged.

    Unlike ``copy.deepcopy``, this cannot fail. An attribute that cannot be copied (an open file, a lock) is shared.
    ``convert`` gets each tensor once, also non-leaf tensors and those in attributes, so that ties are kept. Functions
    and hooks whose closures hold modules of the tree are copied with the copied modules.

    Args:
        model: the module tree; its modules' classes are kept.
        convert: returns the new tensor for a tensor: a clone, the tensor itself, or a fake of it.
        apart: whether to copy lists, dicts and sets in such closures, so that a run of the copy does not change the
            user's.

    Returns:
        The copy, of the same class, with the same training flags and hooks.
    """
    copier = Copier(apart=apart)
    memo = copier.memo
    modules = list(model.modules())
    for module in modules:
        memo[id(module)] = object.__new__(type(module))
    for module in modules:
        for tensor in own_tensors(module):
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor if isinstance(tensor, DroppedTensor) else convert(tensor)
    functions: list[tuple[dict[str, Any], str, Any]] = []  # last, because they may hold copies of other attributes
    for module in modules:
        shell = vars(memo[id(module)])
        for key, value in vars(module).items():
            kind = type(value)
            if kind in PLAIN_TYPES:
                shell[key] = value
            elif (kind is dict or kind is OrderedDict) and not value and id(value) not in memo:
                shell[key] = memo[id(value)] = kind()  # a fast path: most attributes are plain or empty
            elif kind is FunctionType or key.endswith("_hooks"):
                shell[key] = None
                functions.append((shell, key, value))
            else:
                shell[key] = copier.copy(value)
    for shell, key, value in functions:
        shell[key] = copier.copy(value)
    return memo[id(model)]


def own(tensor: Tensor) -> Tensor:
    """Copy a tensor; the copy of a parameter is a parameter."""
    with torch.no_grad():
        copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad) if tensor.requires_grad else copy


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors in a module's attributes, up to three containers deep."""
    # Most of a module's attributes are flags and empty registries.
    stack: list[tuple[Any, int]] = [
        (value, 0)
        for value in vars(module).values()
        if type(value) not in PLAIN_TYPES and _full(value) and not isinstance(value, ATOMS)
    ]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, Tensor):
            yield value
        elif depth < 3 and isinstance(value, (dict, Mapping)):
            stack += [(item, depth + 1) for item in cast("Mapping[Any, Any]", value).values()]
        elif depth < 3 and isinstance(value, (list, tuple)):
            stack += [(item, depth + 1) for item in cast("list[Any]", value)]


def _full(value: Any) -> bool:
    kind = type(value)
    if kind is dict or kind is OrderedDict:  # a fast path, because isinstance with Mapping is slow
        return bool(cast("dict[Any, Any]", value))
    if kind is set:
        return False
    return isinstance(value, Tensor) or (
        isinstance(value, (Mapping, list, tuple)) and len(cast("list[Any]", value)) > 0
    )
