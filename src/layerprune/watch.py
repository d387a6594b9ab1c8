"""Watching: a model's functions and module calls, as its forward runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
    """Sees every function as the forward calls it, and by that keeps fused fast paths off.

    Args:
        call: gets the function's name without underscores around it, the function and its arguments; runs it.
        query: gets each tensor whose shape the forward reads.
    """

    def __init__(
        self, call: Callable[[str, Callable[..., Any], Any, Any], Any], query: Callable[[Tensor], None] | None = None
    ) -> None:
        super().__init__()
        self.call = call
        self.query = query

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand a function call on to the watcher; queries of a shape or a flag run unseen."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name in _QUERIES:
            if self.query is not None and name in _SHAPE_QUERIES and args and isinstance(args[0], Tensor):
                self.query(args[0])
            return func(*args, **kwargs)
        return self.call(name.strip("_"), func, args, kwargs)


@contextmanager
def watched(
    model: nn.Module,
    wrap: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]],
    modules: Iterable[nn.Module] | None = None,
) -> Generator[None]:
    """Wrap the forward of every module, or of some of the modules only, and take the wrappers off again."""
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
def hooks_watched(model: nn.Module, told: Callable[[nn.Module], None]) -> Generator[None]:
    """Tell, while the model runs, which modules have a forward hook that replaces what they take or return."""

    def watching(module: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def watched_hook(*args: Any, **kwargs: Any) -> Any:
            result = hook(*args, **kwargs)
            if result is not None and result is not args[-1]:
                told(module)
            return result

        return watched_hook

    before: list[tuple[dict[int, Any], dict[int, Any]]] = []
    try:
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                if hooks:
                    before.append((hooks, dict(hooks)))
                    hooks.update({key: watching(module, hook) for key, hook in hooks.items()})
        yield
    finally:
        for hooks, old in before:
            hooks.update({key: hook for key, hook in old.items() if key in hooks})
