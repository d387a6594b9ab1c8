"""Finds the line of a model's code that calls a function."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx

from layerprune.errors import PACKAGE_FOLDER

_LIBRARIES = (os.path.dirname(os.path.abspath(torch.__file__)) + os.sep, PACKAGE_FOLDER)


def custom_function() -> str:
    """The name of the ``torch.autograd.Function`` whose forward is running in the nearest module; empty without one."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and not isinstance(_first(frame), nn.Module):
        context = _first(frame)
        if isinstance(context, FunctionCtx) and frame.f_code.co_name == "forward":
            return type(context).__name__.removesuffix("Backward")
        frame = frame.f_back
    return ""


def _first(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def caller(names: Mapping[int, str]) -> str:
    """Identify the call site of the running function: the innermost running module, and the code places from there on.

    The same call has the same opaque text in every run, whatever watches the model; all rounds of a loop are one place.
    ``names`` maps a module's id to its name; the text is empty where none of these modules runs.
    """
    places: list[str] = []
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        code = frame.f_code
        first = _first(frame)
        is_own = isinstance(first, nn.Module) and hasattr(type(first), code.co_name)  # not a helper given a module
        name = names.get(id(first)) if is_own else None
        if name is not None or not code.co_filename.startswith(_LIBRARIES):
            places.append(_place(code, frame.f_lasti))
        if name is not None:
            return " ".join([name, *reversed(places)])
        frame = frame.f_back
    return ""


def user_line(error: BaseException) -> tuple[str, int]:
    """The innermost file and line of the user's code in a traceback; without any, of torch's or this library's."""
    found, traceback = ("", 0), error.__traceback__
    while traceback is not None:
        place = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        found = place if not place[0].startswith(_LIBRARIES) or found[0].startswith(_LIBRARIES) else found
        traceback = traceback.tb_next
    return found


def _place(code: CodeType, instruction: int) -> str:
    """Name an instruction by its place in the source; its number changes, as Python specializes repeated calls."""
    places = _positions(code)
    here = places[instruction // 2] if 0 <= instruction // 2 < len(places) else ()
    known = all(number is not None for number in here) and bool(here)
    return f"{code.co_firstlineno}.{'-'.join(map(str, here)) if known else instruction}"


@functools.lru_cache(maxsize=4096)
def _positions(code: CodeType) -> tuple[tuple[Any, ...], ...]:
    """Lines and columns of each instruction; empty before Python 3.11."""
    positions = getattr(code, "co_positions", None)
    return () if positions is None else tuple(positions())
