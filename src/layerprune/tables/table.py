"""The record of a table: texts and tones, without models, tensors or markup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

#: What a cell says of its content: it is good, needs care, is bad, or matters less.
Tone: TypeAlias = Literal["good", "care", "bad", "quiet"]


class Toned(NamedTuple):
    """A cell's text with its tone."""

    text: str
    tone: Tone


#: A cell of a table; its text may hold names of modules, which are not trusted: each renderer escapes them.
Cell: TypeAlias = "str | Toned"


def text_of(cell: Cell) -> str:
    """The text of a cell."""
    return cell.text if isinstance(cell, Toned) else cell


def tone_of(cell: Cell) -> Tone | None:
    """The tone of a cell."""
    return cell.tone if isinstance(cell, Toned) else None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A result as a table.

    Attributes:
        columns: headings; none where the rows need no heading.
        rows: one cell for each column.
        title: the result in one line.
        facts: (label, value) pairs that stand before the rows.
        footer: a cell for each column; empty without a footer.
        notes: remarks for the user, which stand below.
        num_left: number of columns, from the left, that hold words; the others hold numbers and end at the right.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    title: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    footer: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    num_left: int = 1

    def __post_init__(self) -> None:
        lines = [row for row in (self.columns, *self.rows, self.footer) if row]
        if len({len(row) for row in lines}) > 1:
            raise ValueError(f"the rows of the table {self.title!r} have {sorted({len(row) for row in lines})} cells")
