"""Interposes on functions, operations and module calls of a forward, and turns off torch's fused fast path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layerprune.environment import SharedContext
from layerprune.modules.undo import UndoLog
from layerprune.tensors import flat_tensors, op_name, raw_name, written_tensors
from layerprune.torch_internals import DispatchMode, hooks_of, no_modes

# Attribute reads and queries that make no tensor.
_QUERIES = frozenset(
    {
        "shape",
        "size",
        "dim",
        "ndim",
        "ndimension",
        "numel",
        "nelement",
        "__len__",
        "stride",
        "dtype",
        "device",
        "layout",
    }
    | {"requires_grad", "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized", "is_leaf", "grad", "grad_fn"}
    | {"is_floating_point", "is_complex", "is_contiguous", "is_inference", "data_ptr", "storage_offset", "is_nested"}
    | {"untyped_storage", "element_size", "is_mkldnn", "names", "is_mps", "is_xpu", "_version", "get_device", "is_mtia"}
    | {"__hash__", "__repr__", "__format__", "is_pinned", "itemsize", "nbytes", "output_nr", "retains_grad", "is_xla"}
    | {"is_shared", "is_signed", "result_type", "requires_grad_", "is_tensor", "__get__", "register_hook", "has_names"}
)
_SHAPE_QUERIES = frozenset(
    {"shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "__len__", "stride", "is_contiguous"}
)


class FunctionWatch(TorchFunctionMode):
    """Interposes on every function that a forward calls; this also turns off fused fast paths.

    Args:
        call: runs a function; takes its name without underscores around it, the function and its arguments.
        query: takes each tensor whose shape the forward reads.
    """

    def __init__(
        self, call: Callable[[str, Callable[..., Any], Any, Any], Any], query: Callable[[Tensor], None] | None = None
    ) -> None:
        super().__init__()
        self.call = call
        self.query = query

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass a function call to ``call``; queries of a shape or a flag run directly."""
        kwargs = kwargs or {}
        name = raw_name(func)
        if name in _QUERIES:
            if self.query is not None and name in _SHAPE_QUERIES and args and isinstance(args[0], Tensor):
                self.query(args[0])
            return func(*args, **kwargs)
        return self.call(op_name(func), func, args, kwargs)


class OperationWatch(DispatchMode):
    """Interposes on every operation with its schema, below autograd and inside C++ composites.

    Args:
        before: takes the tensors that an operation will write into, if there are any.
        after: takes the name, and the tensors that are read, returned and written.
    """

    def __init__(
        self,
        before: Callable[[list[Tensor]], None],
        after: Callable[[str, list[Tensor], list[Tensor], list[Tensor]], None],
    ) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and report it, unless it makes, writes and reads out no tensor."""
        kwargs = kwargs or {}
        written = list(written_tensors(func, args, kwargs))
        if written:
            self.before(written)
        out = func(*args, **kwargs)
        inputs = flat_tensors((args, kwargs))
        outputs = flat_tensors(out)
        if outputs or written or func.__name__.startswith("_local_scalar"):
            self.after(func.__name__.split(".")[0], inputs, outputs, written)
        return out


@contextmanager
def watched(
    model: nn.Module,
    wrap: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]],
    modules: Iterable[nn.Module] | None = None,
) -> Generator[None]:
    """Wrap the forward of every module, or of ``modules`` only, and restore it at the end."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module in model.modules() if modules is None else modules:
            before.append((module, vars(module).get("forward")))
            vars(module)["forward"] = wrap(module, module.forward)
        yield
    finally:
        for module, forward in before:
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


@contextmanager
def _fast_path_off() -> Generator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


#: Keeps torch's transformer modules from running as one fused operation, in which no value shows up.
no_fast_path = SharedContext(_fast_path_off)


def nothing() -> Tensor:
    """A tensor in the place of a removed weight in :class:`torch.nn.TransformerEncoder`.

    The encoder reads the weights of its first layer to decide whether it packs padded tokens into a nested tensor,
    which returns zeros for them. Any plain tensor keeps this decision; no computation uses it.
    """
    with no_modes():
        return torch.empty(0)


def unfuse(layer: nn.TransformerEncoderLayer, undo_log: UndoLog) -> None:
    """Turn off the fused operation of a layer with a removed module, because it would read all weights."""
    undo_log.set(vars(layer), "activation_relu_or_gelu", 0)


@contextmanager
def hooks_watched(model: nn.Module, told: Callable[[nn.Module], None]) -> Generator[None]:
    """Report, while the model runs, modules with a forward hook on which other layers may depend.

    The hook replaces the module's arguments or outputs, or stores a tensor where the model's forward may read it: in
    another module's attribute, or in a list or dict that is one.
    """
    shared = {
        id(value) for module in model.modules() for value in _own_attributes(module) if type(value) in (dict, list)
    }

    def watching(module: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
        places = [place for place in reached(hook) if place is not module]
        places = [place for place in places if isinstance(place, nn.Module) or id(place) in shared]

        @functools.wraps(hook)
        def watched_hook(*args: Any, **kwargs: Any) -> Any:
            before = _kept(places)
            result = hook(*args, **kwargs)
            if (result is not None and result is not args[-1]) or not _kept(places).keys() <= before.keys():
                told(module)
            return result

        return watched_hook

    before: list[tuple[dict[int, Any], dict[int, Any]]] = []
    try:
        for module in model.modules():
            for hooks in hooks_of(module):
                if hooks:
                    before.append((hooks, dict(hooks)))
                    hooks.update({key: watching(module, hook) for key, hook in hooks.items()})
        yield
    finally:
        for hooks, old in before:
            hooks.update({key: hook for key, hook in old.items() if key in hooks})


def reached(hook: Callable[..., Any]) -> list[Any]:
    """Objects that a hook or a forward may read or write: its bound object, closure and defaults."""
    if isinstance(hook, functools.partial):
        return [*hook.args, *hook.keywords.values(), *reached(hook.func)]
    bound = getattr(hook, "__self__", None)
    function = getattr(hook, "__func__", hook)
    cells: Iterable[Any] = getattr(function, "__closure__", None) or ()
    closed = [cell.cell_contents for cell in cells if _is_filled(cell)]
    return [*([] if bound is None else [bound]), *closed, *(getattr(function, "__defaults__", None) or ())]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # the variable is not assigned yet
        return False


def _own_attributes(module: nn.Module) -> list[Any]:
    return [value for key, value in vars(module).items() if not key.startswith("_")]


def _kept(places: Iterable[Any]) -> dict[int, Tensor]:
    """Tensors in modules and containers, by id; the result keeps them alive, so that ids stay unique."""
    found: list[Any] = []
    for place in places:
        for value in _own_attributes(place) if isinstance(place, nn.Module) else [place]:
            if isinstance(value, dict):
                found += cast("dict[Any, Any]", value).values()
            elif isinstance(value, (list, tuple)):
                found += cast("list[Any]", value)
            else:
                found.append(value)
    return {id(value): value for value in found if isinstance(value, Tensor)}
