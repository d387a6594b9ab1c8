"""Widths of text in a sans-serif font, as an estimate that errs to the wide side."""

from __future__ import annotations

_WIDE = frozenset("mwMW@%—…")
_NARROW = frozenset("iljtfrI.,:;|!'()[] ")


def text_width(text: str, size: float) -> float:
    """Estimate the width of a line of text in a font of ``size`` units."""
    return size * sum(_em(char) for char in text)


def _em(char: str) -> float:
    if char in _WIDE:
        return 0.95
    if char in _NARROW:
        return 0.42
    if ord(char) > 0x2E7F:  # East Asian and pictures
        return 1.1
    return 0.72 if char.isupper() else 0.63


def clipped(text: str, size: float, width: float) -> str:
    """Cut a text that is wider than ``width``, and mark the cut with an ellipsis in its middle.

    Dotted names differ at their ends as often as at their starts.
    """
    text = " ".join(text.split())
    if text_width(text, size) <= width:
        return text
    for kept in range(min(len(text) - 1, 80), 1, -1):
        short = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
        if text_width(short, size) <= width:
            return short
    return "…"
