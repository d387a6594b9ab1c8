"""Results as tables of texts, rendered as plain text, for rich and as HTML; numbers in few characters."""

# pyright: reportUnusedImport=false
from layerprune.tables.brief import brief
from layerprune.tables.colours import Pattern, coloured, print_coloured
from layerprune.tables.layout import WIDTH, rule, terminal_width, wrapped
from layerprune.tables.numbers import (
    amount_text,
    bytes_text,
    clipped,
    count_text,
    impact_text,
    name_clipped,
    share_text,
    short_number,
)
from layerprune.tables.shown import ShownAsTable
from layerprune.tables.table import Cell, Table, Tone, Toned
from layerprune.tables.text import aligned, table_text, visible
