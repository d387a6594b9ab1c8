"""Remembers which output shapes layers make of input shapes, so that many proofs cost little more than one.

A module that changes an attribute when it runs is not remembered: a later layer, or a backward, may read it.
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

# Layers of one tensor, whose output's shape follows from their settings, their parameters' shapes and the input's.
_PURE = (
    *(nn.Linear, Conv, BatchOrInstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding),
    *(*POOLS, Dropout),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.Mish),
)


_MARK = "_answers_from_memo"

# Constants that a fake forward may take for its output to be remembered.
_CONSTANTS = (type(None), bool, int, float, str)

_L = TypeVar("_L")

#: What is known by its value.
NAMED = (int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.Size)

#: Sees a layer's call: the layer, its input, and the two ways to run it: from memory, or really.
Observer = Callable[[nn.Module, Tensor, Callable[[Tensor], Any], Callable[..., Any]], Any]


class ShapeCache:
    """Remembers, per kind of layer and shape of input, the shape of the output of fake forwards.

    Args:
        mode: the mode of the fake tensors that run through the layers.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.known: dict[tuple[Any, ...], Any] = {}
        self.open: frozenset[str] = frozenset()
        self.observer: Observer | None = None
        self.functions = FunctionShapeCache(self.fake)

    def attach(self, model: nn.Module, leaves: Collection[str]) -> None:
        """Let the layers of a shadow answer from the memo. Edited layers are other layers: their shapes tell.

        Args:
            model: the shadow's model.
            leaves: names of custom leaf modules that make one tensor of one tensor and write into none.
        """
        for name, module in model.named_modules():
            own = isinstance(module, _PURE) and type(module).__module__.startswith("torch.nn.")
            if (own or name in leaves) and not getattr(module, "inplace", False) and "forward" not in vars(module):
                kind = (type(module), module.extra_repr()) if own else (id(module),)
                vars(module)["forward"] = _marked(self.answering(kind, module, module.forward))

    def attach_whole(self, model: nn.Module, names: Collection[str]) -> None:
        """Let modules with others inside answer as a whole, for as long as nothing inside them is edited.

        Args:
            model: the shadow's model.
            names: modules that make new tensors of their arguments and write into none of these.
        """
        for name, module in model.named_modules():
            if name in names and "forward" not in vars(module):
                vars(module)["forward"] = _marked(self.answering_whole(name, module, module.forward))

    def opening(self, names: Iterable[str]) -> None:
        """Have modules run that hold, or lie in, what is edited; all others may answer."""
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
                self.known[key] = result.map(self.fake)  # the caller may write into what it got
            return out

        return answer

    def answering(self, kind: tuple[Any, ...], module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        is_own = isinstance(kind[0], type)  # torch's layers keep nothing of a forward but running statistics

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
        """Have functions inside answer from memory where they may."""
        return FunctionWatch(lambda name, func, args, kwargs: self.functions.result(func, args, kwargs))

    def fake(self, like: Tensor) -> Tensor:
        """Make a fake tensor of another one's form."""
        return fake_like(like, self.mode)


def has_memo(module: nn.Module) -> bool:
    """Whether the forward that a module has of its own is the one that a :class:`ShapeCache` has put there."""
    return hasattr(vars(module).get("forward"), _MARK)


def _marked(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a forward that a memo answers for; ``functools.wraps`` and copies of functions carry the mark along."""
    setattr(forward, _MARK, True)
    return forward


class FunctionShapeCache:
    """Remembers, per function and form of its arguments, its result's form: for fake runs of which only shapes count.

    Args:
        fake: makes a fake tensor of another one's form.
    """

    def __init__(self, fake: Callable[[Tensor], Tensor]) -> None:
        self.fake = fake
        self.known: dict[Any, Tensor] = {}
        self.written: set[Any] = set()

    def result(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function, or answer for it."""
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
        """Run a function that writes into its first argument, unless it is known to leave that one's form as it is."""
        returned = None if func.__name__ == "__setitem__" else next(iter(args), None)
        if (func, form) in self.written:
            return returned
        out = func(*args, **kwargs)
        if out is returned and _form_of_call(args, kwargs) == form:
            self.written.add((func, form))
        return out


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """The settings of a layer that edits change and its parameters' shapes do not tell."""
    return tuple(vars(module)[name] for name in ("stride", "padding", "dilation", "groups") if isinstance(module, Conv))


def _form_of_call(args: Any, kwargs: Any) -> Any:
    """What a function's result on fakes follows from; None where it hangs on more than shapes and plain values."""
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
    """Arguments or an output of a fake forward as a tree; None where it is more than fake tensors and constants."""

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
    """Whether an output is, or lies in, one of the arguments."""
    held = {storage_id(tensor) for tensor in tensors_in(arguments)}
    return any(storage_id(tensor) in held for tensor in tensors_in(out))
