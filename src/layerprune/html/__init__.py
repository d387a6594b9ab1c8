"""Renders the report page: one HTML file, from a record of names and numbers."""

# pyright: reportUnusedImport=false
from layerprune.html.page import page_of, write_page
from layerprune.html.report_data import FigureRow, FrontierSet, ReportData, Reproduction
