"""Plans and groups as text and JSON."""

# pyright: reportUnusedImport=false
from layerprune.report.budget_notes import cap_note, doubtful_choices, is_short, why_nothing
from layerprune.report.colours import PLAN_COLOURS
from layerprune.report.first_screen import NUM_REMOVALS, SHARES, Offer, Screen, screen_lines
from layerprune.report.groups_json import groups_as_json
from layerprune.report.groups_table import groups_table
from layerprune.report.plots import MEASURED, ImpactBar, PlotPoint, draw_frontier, draw_impacts
from layerprune.report.text import Facts, Interval, Totals, figure_lines, groups_text, plan_text, summary_text
from layerprune.tables import WIDTH, amount_text, impact_text, short_number, terminal_width, wrapped
