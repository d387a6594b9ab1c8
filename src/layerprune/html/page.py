"""Assembles the report page: one HTML file without any reference outside itself."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from layerprune.environment import write_text
from layerprune.html.frontier import frontier_section
from layerprune.html.group_table import group_table
from layerprune.html.heat_strip import heat_strip
from layerprune.html.markup import Markup, element, joined
from layerprune.html.report_data import ReportData
from layerprune.html.script_data import plan_data, script_data
from layerprune.html.sections import (
    figures_section,
    notes_section,
    refusals_section,
    removals_section,
    reproduction_section,
    section,
    summary_line,
    tiles,
)
from layerprune.html.training_plots import distillation_section, repair_section
from layerprune.picture import SCRIPT, STYLE, to_html

#: Forbids every request; styles and scripts stand in the file itself.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def page_of(data: ReportData) -> str:
    """Render the page as HTML text; equal data give equal text."""
    body = element(
        "body",
        element("a", "Skip to the content", href="#main", class_="skip"),
        _header(data),
        element("main", _sections(data), id="main"),
        _footer(data),
        element("aside", id="card", aria_label="Group", hidden=True, tabindex="-1"),
        script_data(data),
        plan_data(data),
        element("script", Markup(_compact(SCRIPT))),
        element("script", Markup(_resource("page.js"))),
    )
    return f'<!doctype html>\n<html lang="en">{_head(data)}{body}</html>\n'


def write_page(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write the page, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    return write_text(path, page_of(data), "the report")


def _head(data: ReportData) -> Markup:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{data.model}: layerprune report"),
        element("style", Markup(_compact(STYLE) + _resource("page.css"))),
    )


def _header(data: ReportData) -> Markup:
    switch = element("button", "Dark", type="button", id="theme", class_="needs-script", aria_pressed="false")
    origin = element("p", data.origin, class_="origin name") if data.origin else None
    return element(
        "header",
        element("div", element("p", "layerprune report", class_="brand"), switch, class_="bar-top"),
        element("h1", data.model),
        origin,
        element("p", summary_line(data), class_="summary"),
        tiles(data),
    )


def _footer(data: ReportData) -> Markup:
    version = data.reproduction.versions.get("layerprune", "")
    return element("footer", element("p", f"Made by layerprune {version}. This file makes no network request."))


def _sections(data: ReportData) -> Markup:
    found = [
        figures_section(data),
        _picture(data),
        _groups(data),
        frontier_section(data),
        _depth(data),
        removals_section(data),
        refusals_section(data),
        repair_section(data),
        distillation_section(data),
        notes_section(data),
        reproduction_section(data),
    ]
    return joined([each for each in found if each is not None])


def _picture(data: ReportData) -> Markup | None:
    if data.picture is None:
        return None
    lead = "Modules are frames, groups are boxes. Point at a group or tap it for its card; with keys, arrows and Enter."
    return section("network", "The network", Markup(to_html(data.picture)), lead=lead)


def _groups(data: ReportData) -> Markup | None:
    if not data.groups:
        return None
    search = element(
        "p",
        element("label", "Find a group", for_="find"),
        element("input", type="search", id="find", autocomplete="off", spellcheck="false"),
        element("output", id="found", for_="find", aria_live="polite"),
        class_="find needs-script",
    )
    lead = f"What each group costs when it leaves by its cheapest removal. Impact: {data.impact_unit}."
    return section("groups", "Groups", search, group_table(data), lead=lead)


def _depth(data: ReportData) -> Markup | None:
    strip = heat_strip(data)
    if strip is None:
        return None
    return section("depth", "Impact by depth", strip, lead="Each cell is a group, from the input to the output.")


@lru_cache(maxsize=2)
def _resource(name: str) -> str:
    return _compact(files("layerprune.html").joinpath(name).read_text(encoding="utf-8"))


def _compact(text: str) -> str:
    """A style or a script without indents, blank lines and lines that are comments."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("// ")) + "\n"
