"""torch.compile and torch.export: whether they run, and the modules that they wrap."""

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

#: The attribute in which a module compiled by ``torch.compile`` holds the original module.
INNER_OF_COMPILED = "_orig_mod"


def is_tracing() -> bool:
    """Whether a compilation or an export is running; for code that it does not trace."""
    return CompileContext.current_compile_id() is not None


def is_strict_export() -> bool:
    """Whether the running compilation is ``torch.export`` with strict=True."""
    from torch._dynamo import config  # loaded already, as it is running

    return config.install_free_tensors


def constant(function: F) -> F:
    """Do as :func:`torch.compiler.assume_constant_result`, without its import of the compiler, which takes a second."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run compiled modules as plain Python inside: a compiled module calls no modules."""
    compiles = "torch._dynamo" in sys.modules  # slow to import, and needed for any compilation
    return torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()
