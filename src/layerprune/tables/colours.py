"""Colours a finished text on a terminal; the text itself does not change."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TypeAlias

from rich.console import Console
from rich.text import Text

#: What to colour, and the style of rich. Where the pattern has a group, the group is coloured, else all of it.
Pattern: TypeAlias = "tuple[re.Pattern[str], str]"


def coloured(text: str, patterns: Sequence[Pattern]) -> Text:
    """Give the matches of patterns their style."""
    found = Text(text, no_wrap=True, overflow="ignore")
    for pattern, style in patterns:
        for match in pattern.finditer(text):
            found.stylize(style, *match.span(1 if pattern.groups else 0))
    return found


def print_coloured(text: str, patterns: Sequence[Pattern]) -> None:
    """Print a text to standard output, with colours on a terminal; plain elsewhere, and where ``NO_COLOR`` is set."""
    stream = sys.stdout
    console = Console(file=stream, force_jupyter=False, highlight=False, markup=False, emoji=False)
    if stream is None or not console.is_terminal or console.no_color or console.color_system is None:
        print(text)
    else:
        console.print(coloured(text, patterns), soft_wrap=True)
