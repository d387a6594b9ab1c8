"""Renders a table for rich; texts are never read as markup."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from layerprune.tables.table import Cell, Table, Tone, text_of, tone_of
from layerprune.tables.text import visible

#: Colours of rich, which each terminal shows as its theme says.
STYLES: dict[Tone, str] = {"good": "green", "care": "yellow", "bad": "red", "quiet": "dim"}


def rich_table(table: Table) -> Group:
    """The title, the facts, the rows and the notes of a table, one below the other."""
    parts: list[Text | RichTable] = []
    if table.title:
        parts.append(Text(visible(table.title), style="bold"))
    parts += [Text(f"{visible(label)}: ").append(visible(value), style="bold") for label, value in table.facts]
    if table.rows:
        parts.append(_grid(table))
    parts += [Text.assemble(("Note: ", "yellow"), visible(note)) for note in table.notes]
    return Group(*parts)


def _grid(table: Table) -> RichTable:
    grid = RichTable(
        box=SIMPLE_HEAD,
        show_edge=False,
        show_header=bool(table.columns),
        show_footer=bool(table.footer),
        pad_edge=False,
    )
    for number in range(len(table.rows[0])):
        grid.add_column(
            _text(table.columns[number]) if table.columns else "",
            _text(table.footer[number]) if table.footer else "",
            justify="left" if number < table.num_left else "right",
            overflow="fold",
        )
    for row in table.rows:
        grid.add_row(*map(_text, row))
    return grid


def _text(cell: Cell) -> Text:
    tone = tone_of(cell)
    return Text(visible(text_of(cell)), style=STYLES[tone] if tone else "")
