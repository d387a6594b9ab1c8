"""Builds HTML: all text is escaped unless it is markup already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import TypeAlias

#: Characters that no HTML text may hold, and half surrogates, which no UTF-8 file may hold.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = frozenset({"input", "meta", "br", "wbr", "hr"})
_SHAPES = frozenset({"path", "rect", "line", "circle"})  # of SVG, which close themselves


class Markup(str):
    """HTML text, which is not escaped again."""

    __slots__ = ()


Content: TypeAlias = "str | Iterable[Content] | None"
Attribute: TypeAlias = "str | int | bool | None"


def escaped(text: str) -> Markup:
    """Escape text for a place between tags or in a quoted attribute."""
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", text), quote=True))


def joined(content: Content) -> Markup:
    """Concatenate markup and escaped text."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return escaped(content)
    return Markup("".join(map(joined, content)))


def element(tag: str, *content: Content, **attributes: Attribute) -> Markup:
    """Build an element.

    Args:
        tag: its name.
        *content: markup, or text to escape.
        **attributes: by name, ``class_`` for ``class`` and ``_`` for ``-``; True for one without a value; None and
            False leave it out.
    """
    named = "".join(map(_attribute, attributes.items()))
    if tag in _VOID:
        return Markup(f"<{tag}{named}>")
    if tag in _SHAPES and not content:
        return Markup(f"<{tag}{named}/>")
    return Markup(f"<{tag}{named}>{joined(content)}</{tag}>")


def _attribute(named: tuple[str, Attribute]) -> str:
    key, value = named
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(str(value))}"'


def script_json(text: str) -> Markup:
    """JSON text that may stand in a ``script`` element: nothing in it ends the element or opens a comment."""
    return Markup(
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
