"""The module tree: unwrapping, cloning, finding modules, and telling two models apart."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from layerprune.modules.clone import ATOMS, PLAIN_TYPES, Copier
from layerprune.modules.parameters import named_parameters, parameters
from layerprune.modules.supported import check_module
from layerprune.stand_ins import DroppedTensor
from layerprune.tensors import is_wrapped
from layerprune.torch_internals import INNER_OF_COMPILED, children_of, tensors_of, unsaved_buffers


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module from under ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    Raises:
        UnsupportedModelError: it is no module.
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
    """Whether a module is the linear layer of GPT-2 in transformers, which holds its weight as (input, output)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer under every name it has, parameters first in each module."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, tensor in tensors_of(module):
            yield (f"{prefix}.{key}" if prefix else key), tensor


def slots(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Map ``id(module)`` to every (parent, key) under which the tree holds it."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for key, child in children_of(parent).items():
            if child is not None:
                found.setdefault(id(child), []).append((parent, key))
    return found


class Tree:
    """What hangs where in a model at some moment.

    Args:
        model: the model, as it is at that moment.
    """

    def __init__(self, model: nn.Module) -> None:
        self.before: list[tuple[dict[str, nn.Module | None], list[tuple[str, nn.Module | None]]]] = []
        pending, known = [model], {id(model)}  # as ``model.modules()`` does, which takes several times as long
        while pending:
            held = children_of(pending.pop())
            self.before.append((held, list(held.items())))
            for module in held.values():
                if module is not None and id(module) not in known:
                    known.add(id(module))
                    pending.append(module)

    def put_back(self) -> bool:
        """Hang every module where it was; whether any was not there."""
        some = [(held, items) for held, items in self.before if held or items]
        moved = [(held, items) for held, items in some if _hung(held.items()) != _hung(items)]
        for held, items in moved:
            held.clear()
            held.update(items)
        return bool(moved)


def _hung(items: Iterable[tuple[str, nn.Module | None]]) -> list[tuple[str, int]]:
    return [(key, id(module)) for key, module in items]


def names_by_module(model: nn.Module, *, only_first: bool = False) -> dict[int, list[str]]:
    """Map ``id(module)`` to all its dotted names, or only the first, in the order of ``named_modules``."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=only_first):
        names.setdefault(id(module), []).append(name)
    return names


def num_params(model: nn.Module) -> int:
    """Count the model's parameters; tied ones once."""
    return sum(parameter.numel() for parameter in parameters(model))


def names_with_nan(model: nn.Module) -> list[str]:
    """The parameters that hold values which are not numbers."""
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
        unsaved |= {f"{name}.{key}" if name else key for key in unsaved_buffers(module)}
    for name, tensor in named_tensors(model):
        if caches or name not in unsaved:
            digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
    return digest.hexdigest()


def clone(model: nn.Module, convert: Callable[[Tensor], Tensor], *, apart: bool = False) -> nn.Module:
    """Copy the module tree with every tensor passed through ``convert``; the original is not touched.

    Unlike ``copy.deepcopy`` this cannot fail: every module is copied shell by shell, tensors (non-leaf ones and those
    hidden in attributes too) go through ``convert`` once each, so ties survive, and an attribute that cannot be copied
    (an open file, a lock) is shared. Functions among the attributes and hooks that close over modules of the tree close
    over their copies.

    Args:
        model: the module tree; its modules' classes are kept.
        convert: the new tensor for an old one, e.g. a clone, the tensor itself, or a fake of it.
        apart: whether lists, dicts and sets that such functions close over are copied as well, so that what they
            write down when the copy runs does not reach the user.

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
    functions: list[tuple[dict[str, Any], str, Any]] = []  # last: they may hold what other attributes do
    for module in modules:
        shell = vars(memo[id(module)])
        for key, value in vars(module).items():
            kind = type(value)
            if kind in PLAIN_TYPES:
                shell[key] = value
            elif (kind is dict or kind is OrderedDict) and not value and id(value) not in memo:
                shell[key] = memo[id(value)] = kind()  # with what is plain, nearly all that there is
            elif kind is FunctionType or key.endswith("_hooks"):
                shell[key] = None
                functions.append((shell, key, value))
            else:
                shell[key] = copier.copy(value)
    for shell, key, value in functions:
        shell[key] = copier.copy(value)
    return memo[id(model)]


def own(tensor: Tensor) -> Tensor:
    """Copy a tensor; a parameter stays one."""
    with torch.no_grad():
        copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad) if tensor.requires_grad else copy


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a module's attributes hold, down to three containers deep."""
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
    if kind is dict or kind is OrderedDict:  # by far the most, and empty: asking whether it is a mapping takes longer
        return bool(cast("dict[Any, Any]", value))
    if kind is set:
        return False
    return isinstance(value, Tensor) or (
        isinstance(value, (Mapping, list, tuple)) and len(cast("list[Any]", value)) > 0
    )
