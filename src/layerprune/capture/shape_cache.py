"""Remembers the output shapes of layers by input shapes, so that many proofs cost little more than one.

Modules that change an attribute when they run are not cached: a later layer, or a backward, may read it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from layerprune.modules import FunctionWatch, Held
from layerprune.tensors import OutputTree, form_of, tensors_in
from layerprune.torch_internals import (
    POOLS,
    BatchOrInstanceNorm,
    Conv,
    Dropout,
    FakeTensor,
    FakeTensorMode,
    fake_like,
    parameters_of,
    storage_id,
)

# Layers of one tensor whose output shape depends only on settings and on the shapes of parameters and input.
_PURE = (
    *(nn.Linear, Conv, BatchOrInstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding),
    *(*POOLS, Dropout),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.Mish),
)


_MARK = "_answers_from_memo"

# Types of constants among the arguments and results of cached calls.
_CONSTANTS = (type(None), bool, int, float, str)

_L = TypeVar("_L")

#: Types that are compared by value.
NAMED = (int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.Size)

#: Observes a layer's call: the layer, its input, and functions that answer from the cache or run it.
Observer = Callable[[nn.Module, Tensor, Callable[[Tensor], Any], Callable[..., Any]], Any]


class ShapeCache:
    """Remembers the output shapes of fake forwards, per kind of layer and input shape."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.known: dict[tuple[Any, ...], Any] = {}
        self.open: frozenset[str] = frozenset()
        self.observer: Observer | None = None
        self.functions = FunctionShapeCache(self.fake)

    def attach(self, model: nn.Module, leaves: Collection[str]) -> None:
        """Let the layers of a sandbox answer from the cache. Edited layers count as others, by their shapes.

        ``leaves`` names custom leaf modules that make one tensor of one tensor and write into none.
        """
        for name, module in model.named_modules():
            own = isinstance(module, _PURE) and type(module).__module__.startswith("torch.nn.")
            if (own or name in leaves) and not getattr(module, "inplace", False) and "forward" not in vars(module):
                kind = (type(module), module.extra_repr()) if own else (id(module),)
                vars(module)["forward"] = _marked(self.answering(kind, module, module.forward))

    def attach_whole(self, model: nn.Module, names: Collection[str]) -> None:
        """Let modules with children answer as a whole, while nothing inside them is edited.

        ``names`` lists modules that make new tensors of their arguments and do not write into them.
        """
        for name, module in model.named_modules():
            if name in names and "forward" not in vars(module):
                vars(module)["forward"] = _marked(self.answering_whole(name, module, module.forward))

    def opening(self, names: Iterable[str]) -> None:
        """Run modules that contain, or lie in, edited ones; all others may answer from the cache."""
        self.open = frozenset(
            ".".join(parts[:i]) for n in names for parts in [n.split(".")] for i in range(len(parts) + 1)
        )

    def answering_whole(self, name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:

        def answer(*args: Any, **kwargs: Any) -> Any:
            told = name not in self.open and self.observer is None and not torch.is_grad_enabled()
            form = _tree((args, kwargs), _shape, _CONSTANTS) if told else None
            if form is None:
                return forward(*args, **kwargs)
            key = (id(module), module.training, form)
            if key in self.known:
                return self.known[key].build(self.fake)
            before = Held(module)
            out = forward(*args, **kwargs)
            result = _tree(out, lambda tensor: tensor, (type(None),))
            if before.is_as_before() and result is not None and not _shares(out, (args, kwargs)):
                self.known[key] = result.map(self.fake)  # the caller may write into the result
            return out

        return answer

    def answering(self, kind: tuple[Any, ...], module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        is_own = isinstance(kind[0], type)  # torch's layers keep only running statistics

        def answer(*args: Any, **kwargs: Any) -> Any:
            if kwargs or len(args) != 1 or type(args[0]) is not FakeTensor or torch.is_grad_enabled():
                return forward(*args, **kwargs)
            if self.observer is not None:
                return self.observer(module, args[0], recall, forward)
            return recall(args[0])

        def recall(x: Tensor) -> Any:
            shapes = tuple(None if p is None else p.shape for p in parameters_of(module).values())
            key = (*kind, module.training, shapes, _settings(module), x.shape, x.stride(), x.dtype, x.device)
            like = self.known.get(key)
            if like is not None:
                return self.fake(like)
            before = None if is_own else Held(module)
            out = forward(x)
            if type(out) is FakeTensor and out is not x and (before is None or before.is_as_before()):
                self.known[key] = out
            return out

        return answer

    def recalling(self) -> FunctionWatch:
        """Let functions inside answer from the cache."""
        return FunctionWatch(lambda name, func, args, kwargs: self.functions.result(func, args, kwargs))

    def fake(self, like: Tensor) -> Tensor:
        return fake_like(like, self.mode)


def has_memo(module: nn.Module) -> bool:
    """Whether a module's own forward was set by a :class:`ShapeCache`."""
    return hasattr(vars(module).get("forward"), _MARK)


def _marked(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a cached forward; ``functools.wraps`` and copies of functions keep the mark."""
    setattr(forward, _MARK, True)
    return forward


class FunctionShapeCache:
    """Remembers the form of a function's result by the form of its arguments, for fake runs that only need shapes."""

    def __init__(self, fake: Callable[[Tensor], Tensor]) -> None:
        self.fake = fake
        self.known: dict[Any, Tensor] = {}
        self.written: set[Any] = set()

    def result(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = getattr(func, "__name__", "")
        form = _form_of_call(args, kwargs) if name and "out" not in kwargs else None
        if form is None:
            return func(*args, **kwargs)
        if name.startswith(("__i", "__set")) or (name[-1:] == "_" != name[-2:-1]):
            return self.write(func, args, kwargs, form)
        like = self.known.get((func, form))
        if like is not None:
            return self.fake(like)
        out = func(*args, **kwargs)
        is_new = type(out) is FakeTensor and not any(out is tensor for tensor in tensors_in((args, kwargs)))
        if is_new and out.constant is None:
            self.known[func, form] = out
        return out

    def write(self, func: Callable[..., Any], args: Any, kwargs: Any, form: Any) -> Any:
        """Run a function that writes into its first argument, unless it is known to keep that argument's form."""
        returned = None if func.__name__ == "__setitem__" else next(iter(args), None)
        if (func, form) in self.written:
            return returned
        out = func(*args, **kwargs)
        if out is returned and _form_of_call(args, kwargs) == form:
            self.written.add((func, form))
        return out


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """The settings of a layer that edits change and parameter shapes do not show."""
    return tuple(vars(module)[name] for name in ("stride", "padding", "dilation", "groups") if isinstance(module, Conv))


def _form_of_call(args: Any, kwargs: Any) -> Any:
    """The form that determines a function's result on fakes; None if values other than shapes and constants matter."""
    try:
        found = form_of((args, kwargs), _part)
    except TypeError:
        return None
    return found if any(isinstance(tensor, FakeTensor) for tensor in tensors_in((args, kwargs))) else None


def _part(value: Any) -> Any:
    if isinstance(value, FakeTensor) and value.constant is None:
        return _shape(value)
    if isinstance(value, NAMED) or value is Ellipsis:
        return type(value), repr(value)
    raise TypeError


def _tree(value: Any, leaf: Callable[[Tensor], _L], constants: tuple[type, ...]) -> OutputTree[_L] | None:
    """Arguments or an output of a fake forward as a tree; None if a leaf is no fake tensor and no constant."""

    def fake(tensor: Tensor) -> _L:
        if type(tensor) is not FakeTensor:
            raise TypeError
        return leaf(tensor)

    def other(one: Any) -> OutputTree[_L]:
        if type(one) not in constants:
            raise TypeError
        return OutputTree.constant(one)

    try:
        tree = OutputTree.of(value, fake, other)
    except TypeError:
        return None
    return None if any(node.kind == "record" for node in tree.nodes()) else tree


def _shape(tensor: Tensor) -> Any:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _shares(out: Any, arguments: Any) -> bool:
    held = {storage_id(tensor) for tensor in tensors_in(arguments)}
    return any(storage_id(tensor) in held for tensor in tensors_in(out))
