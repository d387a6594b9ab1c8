"""Lets notebooks and rich show a result as its table."""

from __future__ import annotations

from abc import ABC, abstractmethod

from rich.console import RenderableType

from layerprune.tables.html_table import html_table
from layerprune.tables.rich_table import rich_table
from layerprune.tables.table import Table


class ShownAsTable(ABC):
    """A result that has a table. ``str()`` stays its text, ``repr()`` its one line."""

    @abstractmethod
    def as_table(self) -> Table:
        """The result as a record of texts, for a renderer of your own."""

    def _repr_html_(self) -> str:
        return html_table(self.as_table())

    def __rich__(self) -> RenderableType:
        return rich_table(self.as_table())
