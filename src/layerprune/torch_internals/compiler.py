"""torch.compile and torch.export: whether they are at work, and what they have wrapped."""

# pyright: reportPrivateUsage=false, reportUnusedImport=false
from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._guards import CompileContext
from torch.utils._pytree import tree_map

F = TypeVar("F", bound=Callable[..., Any])

#: The name under which what ``torch.compile`` makes of a module holds that module.
INNER_OF_COMPILED = "_orig_mod"


def is_tracing() -> bool:
    """Whether a compilation or an export is going on, seen from code that it does not trace."""
    return CompileContext.current_compile_id() is not None


def is_strict_export() -> bool:
    """Whether the compilation that is going on is ``torch.export`` with strict=True."""
    from torch._dynamo import config  # at work just now, so this imports nothing

    return config.install_free_tensors


def constant(function: F) -> F:
    """Let torch.compile call a function while it traces, and keep its result.

    This is :func:`torch.compiler.assume_constant_result` without its import of the compiler, which takes a second.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run what ``torch.compile`` has wrapped as the Python that it was: a compiled module calls no modules."""
    compiles = "torch._dynamo" in sys.modules  # slow to import, and nothing is compiled without it
    return torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()
