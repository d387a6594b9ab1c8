"""Fits lines to the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable

from layerprune.tables.text import visible

#: Columns where standard output is no terminal.
WIDTH = 80


def terminal_width() -> int:
    """Columns of the terminal; :data:`WIDTH` where standard output is a pipe, a file or a notebook."""
    stream = sys.stdout
    return shutil.get_terminal_size((WIDTH, 24)).columns if stream is not None and stream.isatty() else WIDTH


def wrapped(lines: Iterable[str], width: int) -> list[str]:
    """Wrap long lines; continuation lines are indented by four more columns. Control characters show as escapes."""
    found: list[str] = []
    for line in map(visible, lines):
        if len(line) <= width:
            found.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        further = indent + "    "
        found += textwrap.wrap(
            line.strip(), max(width, 20), initial_indent=indent, subsequent_indent=further, break_on_hyphens=False
        )
    return found


def rule(width: int) -> str:
    """Underline of a heading."""
    return "-" * min(width, 80)
