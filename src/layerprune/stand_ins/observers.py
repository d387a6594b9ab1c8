"""Observers: hooks, summaries, profilers and function modes (as in ``torch.export``) that read dropped tensors.

An observer reads sizes and values of every tensor, but the model computes nothing from them. It sees an empty tensor.
A forward gets an error instead, because its result would be made up.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, MethodType
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from layerprune.torch_internals import GLOBAL_HOOKS, MODULE_CALL, MODULE_CALLS, hooks_of

#: Answers of an empty tensor, by name of the function.
_EMPTY: dict[str, Any] = {
    **dict.fromkeys(("numel", "nelement", "__len__", "nbytes", "storage_offset", "sparse_dim"), 0),
    **dict.fromkeys(("__int__", "__index__", "data_ptr", "const_data_ptr", "_cdata"), 0),
    **dict.fromkeys(("dim", "ndim", "ndimension", "dense_dim"), 1),
    **dict.fromkeys(("item", "__float__"), math.nan),
    **dict.fromkeys(("__bool__", "is_nonzero", "equal", "allclose", "is_same_size"), False),
    **dict.fromkeys(("is_set_to", "__contains__"), False),
    **dict.fromkeys(("unbind", "split_with_sizes", "tensor_split"), ()),
    "is_contiguous": True,
    "__complex__": complex(math.nan),
    "dim_order": (0,),
}
#: Functions that need a shape or a value; an observer gets the answer of an empty tensor.
ANSWERED = frozenset(
    {*_EMPTY, "shape", "size", "stride", "__iter__", "tolist", "numpy", "__array__", "untyped_storage"}
)


def looks_on(func: Callable[..., Any]) -> bool:
    """Whether the calling code is outside a forward.

    Args:
        func: the called function; a function mode that received it only passes it on for its caller.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        code, around = frame.f_code, frame.f_back
        if around is not None and around.f_code in MODULE_CALLS and code not in MODULE_CALLS:
            return _is_hook(code, around)
        if code.co_name == "__torch_function__":
            if frame.f_locals.get(code.co_varnames[1]) != func:
                return True
        elif _is_method(frame):
            return False
        frame = around
    return True


def _is_method(frame: FrameType) -> bool:
    """Whether a frame runs a module's method; a forward may be called without the module's ``__call__``."""
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    return isinstance(first, nn.Module) and hasattr(type(first), code.co_name) and code not in MODULE_CALLS


def _is_hook(code: CodeType, call: FrameType) -> bool:
    while call.f_code is not MODULE_CALL and call.f_back is not None:
        call = call.f_back
    module = call.f_locals["self"]
    return any(code in _codes(hook) for hooks in (*hooks_of(module), *GLOBAL_HOOKS) for hook in hooks.values())


def _codes(hook: Any) -> Iterable[CodeType]:
    while isinstance(hook, (functools.partial, MethodType)):
        hook = cast(Any, hook.func if isinstance(hook, functools.partial) else hook.__func__)
    code = getattr(hook, "__code__", None) or getattr(type(hook).__call__, "__code__", None)
    return [code] if inspect.iscode(code) else []


def answer(name: str, args: Any, dtype: torch.dtype) -> Any:
    """Answer of an empty tensor of a dtype to function ``name`` of :data:`ANSWERED`; ``args`` follow the tensor."""
    if name in ("shape", "size", "stride"):
        whole = torch.Size([0]) if name != "stride" else (1,)
        return whole[0] if args else whole  # the arguments are dimensions
    if name == "__iter__":
        return iter(())
    if name == "tolist":
        return []
    if name in ("numpy", "__array__"):
        return np.empty(0, np.float32 if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype)
    if name == "untyped_storage":
        return torch.UntypedStorage(0)
    return _EMPTY[name]
