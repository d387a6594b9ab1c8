"""Renders a table as plain text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from layerprune.tables.table import Table, text_of


def visible(text: str) -> str:
    """Show control characters as escapes: a name from a file may hold codes that a terminal obeys."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def aligned(rows: Sequence[Sequence[str]], num_left: int = 1) -> list[str]:
    """Align rows of as many cells each; the first ``num_left`` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < num_left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def table_text(table: Table) -> str:
    """Render a table as plain text, one line a row; notes begin with ``Note:``."""
    lines = [visible(table.title)] if table.title else []
    lines += [f"{visible(label)}: {visible(value)}" for label, value in table.facts]
    rows = [[text_of(cell) for cell in row] for row in (table.columns, *table.rows, table.footer) if row]
    lines += aligned([[visible(cell) for cell in row] for row in rows], table.num_left) if rows else []
    return "\n".join([*lines, *(f"Note: {visible(note)}" for note in table.notes)])
