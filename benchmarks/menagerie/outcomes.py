"""What became of a model or of a check, in one line of text whose first word tells the kind."""

from __future__ import annotations

import traceback
from pathlib import Path

from layerprune.errors import LayerPruneError
from oracle.simulation import CannotLocate

OK = "ok"
NOT_APPLICABLE = "-"
_WIDTH = 300


class Wrong(Exception):
    """Something that we checked does not hold."""


def of_error(error: BaseException) -> str:
    """Name an error: ``refused`` is layerprune's, ``wrong`` a check's, ``unverified`` the simulation's, else foreign.

    A foreign one shows the frame that raised it, and the frame of layerprune that this was called from.
    """
    first = first_line(error)
    match error:
        case LayerPruneError():
            return f"refused: {type(error).__name__}: {first}"
        case Wrong():
            return f"wrong: {first}"
        case CannotLocate():
            return f"unverified: {first}"
        case _:
            return f"foreign: {type(error).__name__}: {first} [{_where(error)}]"


def first_line(error: BaseException) -> str:
    """The first line of a message; with the second where the first one announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def not_applicable(why: str) -> str:
    return f"{NOT_APPLICABLE} {why}"


def is_fine(outcome: str) -> bool:
    """Whether a check's outcome counts as no failure."""
    return outcome == OK or outcome.startswith(NOT_APPLICABLE)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/layerprune/" in frame.filename.replace("\\", "/")]
    shown = [frames[-1], *([ours[-1]] if ours and ours[-1] is not frames[-1] else [])]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in shown)
