"""The one-line ``repr()`` of results."""

from __future__ import annotations

from layerprune.tables.numbers import clipped
from layerprune.tables.text import visible

_MOST = 100  # characters


def brief(shown: object, text: str) -> str:
    """The class and a text in brackets, in one line of at most a hundred characters: ``Group(conv1: 3 layers)``."""
    name = type(shown).__name__
    return f"{name}({clipped(visible(text), _MOST - len(name) - 2)})"
