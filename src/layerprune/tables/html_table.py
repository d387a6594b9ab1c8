"""Renders a table as HTML for notebooks, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from layerprune.tables.table import Cell, Table, Tone, text_of, tone_of
from layerprune.tables.text import visible

#: Colours of medium lightness, readable on white and on black; the text says the same without them.
COLOURS: dict[Tone, str] = {"good": "#22863a", "care": "#a56a00", "bad": "#d73a49", "quiet": "#808080"}

_LINE = "1px solid rgba(128,128,128,.5)"


def html_table(table: Table) -> str:
    """A block of HTML without scripts, classes or links; text and background keep the colours of the page."""
    parts: list[str] = []
    if table.title:
        parts.append(f'<p style="margin:0 0 4px"><strong>{_escaped(table.title)}</strong></p>')
    parts += [f'<p style="margin:0">{_escaped(label)}: {_escaped(value)}</p>' for label, value in table.facts]
    if table.rows:
        parts.append(_grid(table))
    parts += [f'<p style="margin:0;font-size:90%"><em>Note:</em> {_escaped(note)}</p>' for note in table.notes]
    return f'<div style="overflow-x:auto">{"".join(parts)}</div>'


def _grid(table: Table) -> str:
    rows: list[str] = []
    if any(table.columns):
        rows.append(f"<thead>{_row(table.columns, table.num_left, 'th')}</thead>")
    rows.append(f"<tbody>{''.join(_row(row, table.num_left, 'td') for row in table.rows)}</tbody>")
    if table.footer:
        rows.append(f"<tfoot>{_row(table.footer, table.num_left, 'td', line=True)}</tfoot>")
    return f'<table style="border-collapse:collapse;margin:4px 0">{"".join(rows)}</table>'


def _row(row: Sequence[Cell], num_left: int, tag: str, *, line: bool = False) -> str:
    cells: list[str] = []
    for number, cell in enumerate(row):
        styles = [f"text-align:{'left' if number < num_left else 'right'}", "padding:2px 8px"]
        if tag == "th":
            styles.append(f"border-bottom:{_LINE}")
        if line:
            styles.append(f"border-top:{_LINE}")
        tone = tone_of(cell)
        if tone:
            styles.append(f"color:{COLOURS[tone]}")
        scope = ' scope="col"' if tag == "th" else ""
        cells.append(f'<{tag}{scope} style="{";".join(styles)}">{_escaped(text_of(cell))}</{tag}>')
    return f"<tr>{''.join(cells)}</tr>"


def _escaped(text: str) -> str:
    return escape(visible(text))
