"""Numbers and names in few characters."""

from __future__ import annotations

import math

_UNITS = ("", " k", " M", " G", " T", " P")
_BYTE_UNITS = ("KiB", "MiB", "GiB", "TiB")


def clipped(text: str, width: int) -> str:
    """Cut a long text, and mark the cut with an ellipsis."""
    return text if len(text) <= width else text[: max(width - 1, 0)].rstrip() + "…"


def name_clipped(name: str, width: int) -> str:
    """Shorten a dotted name as logs do, from the left: ``encoder.layer.10.dense`` to ``e.l.10.dense``, then cut it.

    Numbers stay: they tell repeated blocks apart.
    """
    head, colon, rest = name.partition(":")
    words = head.split(".")
    for place, word in enumerate(words[:-1]):
        if sum(map(len, words)) + len(words) - 1 + len(colon + rest) <= width:
            break
        words[place] = word if word.isdigit() else word[:1] + word[len(word.rstrip("0123456789")) :]
    return clipped(".".join(words) + colon + rest, width)


def short_number(value: float) -> str:
    """Format with three digits and a unit: ``19.2 M``."""
    place = 0
    while abs(value) >= 999.5 and place < len(_UNITS) - 1:
        value, place = value / 1000, place + 1
    return f"{value:.0f}" if not place else f"{value:.3g}{_UNITS[place]}"


def count_text(num: int, noun: str) -> str:
    """Format a number of things: ``1 layer``, ``1,234 layers``."""
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def share_text(amount: float, total: float | None) -> str:
    """Format the share of a total: ``30.1%``."""
    return f"{amount / total if total else 0.0:.1%}"


def amount_text(amount: int, total: int) -> str:
    """Format an amount and its share: ``26,816 (30.1%)``."""
    return f"{amount:,} ({share_text(amount, total)})"


def impact_text(impact: float | None) -> str:
    """Format an impact: three decimals or digits, ``inf`` for critical groups, ``unknown`` for None and nan."""
    if impact is None or math.isnan(impact):
        return "unknown"
    return f"{impact:.3g}" if 0 < abs(impact) < 0.1 else f"{impact:.3f}"


def bytes_text(value: int) -> str:
    """Format with three digits and a unit: ``1.95 KiB``."""
    if value < 1024:
        return f"{value} B"
    size, place = value / 1024, 0
    while size >= 999.5 and place < len(_BYTE_UNITS) - 1:
        size, place = size / 1024, place + 1
    return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f} {_BYTE_UNITS[place]}"
