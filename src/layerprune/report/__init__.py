"""Plans and groups as text and tables."""

# pyright: reportUnusedImport=false
from layerprune.report.budget_notes import cap_note, is_short, why_nothing
from layerprune.report.first_screen import NUM_REMOVALS, SHARES, Offer, Screen, screen_lines
from layerprune.report.groups_json import groups_as_json
from layerprune.report.layout import WIDTH, short_number, terminal_width
from layerprune.report.table import table_of
from layerprune.report.text import (
    Facts,
    Interval,
    Totals,
    amount_text,
    figure_lines,
    groups_text,
    impact_text,
    plan_text,
    summary_text,
)
