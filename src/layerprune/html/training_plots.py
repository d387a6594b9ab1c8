"""The repair and the distillation as plots, with their figures as text."""

from __future__ import annotations

import math

from layerprune.distillation import Distillation
from layerprune.html.markup import Content, Markup, element
from layerprune.html.plot import Line, PlotPoint, line_plot
from layerprune.html.report_data import ReportData
from layerprune.html.sections import section
from layerprune.html.table import scrolled_table
from layerprune.repair import RepairReport


def repair_section(data: ReportData) -> Markup | None:
    """The transforms that were solved again, and how much of the distance from the original they leave."""
    report = data.repair
    if report is None:
        return None
    lead = f"{report.num_kept} of {len(report.refitted)} transforms behind the gaps were solved again"
    if report.unit and math.isfinite(report.before):
        lead += f"; {report.unit}, on data of the fit: {report.before:.4g} → {report.after:.4g}"
    parts: list[Content] = [_verdict(report), _refitted(report)]
    if report.refused:
        items = [element("li", element("span", k, class_="name"), " ", why) for k, why in report.refused.items()]
        head = element("summary", f"{len(report.refused)} transforms could not be solved again")
        parts.append(element("details", head, element("ul", items, class_="reasons")))
    parts.append(element("ul", [element("li", note) for note in report.notes]) if report.notes else None)
    return section("repair", "Repair", parts, lead=f"{lead}.")


def _verdict(report: RepairReport) -> Markup | None:
    return None if report.verdict is None else element("p", str(report.verdict), class_="lines")


def _refitted(report: RepairReport) -> Markup | None:
    if not report.refitted:
        return None
    rows: list[Markup] = []
    for one in report.refitted:
        left = min(max(one.left, 0.0), 1.0) if one.kept else 1.0
        bar = element("svg", element("rect", width=f"{100 * left:.3g}%"))
        said = f"{one.left:.1%} left" if one.kept else "stays as it was"
        name = element("th", element("span", one.name, class_="name"), scope="row")
        cell = element("td", bar, said)
        rows.append(element("tr", name, cell, element("td", f"{one.num_rows:,}", class_="num")))
    caption = "Squared distance from the original's tensor that is left, on held-out rows, front to back"
    return scrolled_table(caption, ("Transform", "Left", "Rows of the fit"), rows, class_="groups refitted")


def distillation_section(data: ReportData) -> Markup | None:
    """The loss of each step, and the divergence on held-out data at each evaluation."""
    run = data.distillation
    if run is None:
        return None
    kept = f"after step {run.best_step:,}" if run.kept else "the model stays as it was"
    lead = (
        f"{run.num_steps:,} of {run.num_planned:,} steps: {run.stopped}; {run.unit}, on held-out data: "
        f"{run.before:.4g} → {run.after:.4g} ({kept}). {run.num_trained:,} numbers were trained."
    )
    plots = [_divergences(run), _losses(run)]
    notes = element("ul", [element("li", note) for note in run.notes]) if run.notes else None
    return section("distillation", "Distillation", element("div", plots, class_="two"), notes, lead=lead)


def _losses(run: Distillation) -> Markup | None:
    steps = [(step, loss) for step, loss in enumerate(run.losses, start=1) if math.isfinite(loss)]
    if len(steps) < 2:
        return None
    label = f"Loss of each step, from {steps[0][1]:.3g} to {steps[-1][1]:.3g}."
    line = Line(label="loss", points=steps)
    plot = line_plot([line], label=label, x_label="step", y_label="loss", legend=False)
    return element("figure", element("figcaption", "Loss of each step"), plot)


def _divergences(run: Distillation) -> Markup | None:
    looks = [(step, value) for step, value in run.looks if math.isfinite(value)]
    if len(looks) < 2:
        return None
    label = f"{run.unit} on held-out data, from {run.before:.4g} before training to {run.after:.4g}."
    marks = [PlotPoint(label="kept weights", x=run.best_step, y=run.after)]
    line = Line(label="held-out data", points=looks, has_dots=True)
    plot = line_plot([line], label=label, x_label="step", y_label=run.unit, marks=marks)
    return element("figure", element("figcaption", "Divergence on held-out data"), plot, _looks_table(run))


def _looks_table(run: Distillation) -> Markup:
    rows = [element("tr", element("td", f"{step:,}"), element("td", f"{value:.4g}")) for step, value in run.looks]
    head = element("tr", element("th", "Step", scope="col"), element("th", run.unit, scope="col"))
    table = element("table", element("thead", head), element("tbody", rows))
    return element("details", element("summary", "As a table"), table)
