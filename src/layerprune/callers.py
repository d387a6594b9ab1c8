"""Callers: from where in a model's code a function is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import torch
from torch import nn

_LIBRARIES = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (torch.__file__, __file__))


def caller(names: Mapping[int, str]) -> str:
    """Say from where the function that is running was called: a module, and the places in the code from there on.

    It is the same for the same call in every run, whatever watches the model; the rounds of a loop are one place.

    Args:
        names: module's id → what it is called; of the innermost one of them that runs, the code counts.

    Returns:
        Words without a meaning of their own; empty where none of the modules runs.
    """
    places: list[str] = []
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        is_own = isinstance(first, nn.Module) and hasattr(type(first), code.co_name)  # no helper that gets a module
        name = names.get(id(first)) if is_own else None
        if name is not None or not code.co_filename.startswith(_LIBRARIES):
            places.append(f"{code.co_firstlineno}.{frame.f_lasti}")
        if name is not None:
            return " ".join([name, *reversed(places)])
        frame = frame.f_back
    return ""
