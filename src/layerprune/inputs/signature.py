"""Names of a forward's positional parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any


def positional_names(forward: Callable[..., Any]) -> Sequence[str]:
    """Names of a forward's positional parameters, of the function inside its decorators."""
    function = inspect.unwrap(getattr(forward, "__func__", forward))
    return _signature_names(getattr(function, "__func__", function))  # bound methods would fill the cache


@functools.lru_cache(maxsize=4096)
def _signature_names(function: Callable[..., Any]) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    if code is None:
        return ()
    names = code.co_varnames[: code.co_argcount]
    return tuple(names[1:] if names[:1] == ("self",) else names)
