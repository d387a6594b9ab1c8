"""The sections of the page that are text and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerprune.fidelity import HeldOutVerdict
from layerprune.graph import Group, RefusalCode
from layerprune.html.markup import Content, Markup, element
from layerprune.html.report_data import FigureRow, ReportData
from layerprune.html.table import scrolled_table
from layerprune.plan import PlannedRemoval
from layerprune.report import amount_text, impact_text, short_number


def section(name: str, heading: str, *content: Content, lead: str = "") -> Markup:
    """A section with its heading, and one sentence that says what it shows."""
    return element(
        "section",
        element("h2", heading, id=f"{name}-heading"),
        element("p", lead, class_="lead") if lead else None,
        *content,
        id=name,
        aria_labelledby=f"{name}-heading",
    )


# ---- summary ---------------------------------------------------------------------------------------------------------


def summary_line(data: ReportData) -> str:
    """One sentence: the part that leaves, how much smaller and faster the model gets, and what that costs."""
    if data.plan is None:
        return _offer_line(data)
    plan = data.plan
    if not plan.removals:
        why = plan.shortfall or "the plan removes nothing"
        return f"{why[0].upper()}{why[1:]}."
    num = len(data.planned_groups)
    who = (
        f"{num} of {len(data.groups)} groups leave"
        if data.groups
        else "1 group leaves"
        if num == 1
        else f"{num} groups leave"
    )
    parts = [
        f"{who}: {short_number(plan.num_params_before)} → {short_number(plan.num_params_after)} "
        f"parameters ({-plan.reduction:+.1%})"
    ]
    rows = {row[0]: row for row in (*data.figures, *data.fidelity)}
    if "MACs" in rows and rows["MACs"][3] not in ("", "—"):
        parts.append(f"{rows['MACs'][3]} MACs")
    if "latency" in rows:
        parts.append(f"{rows['latency'][3].partition(' [')[0]} the latency")
    cost = plan.impact_together
    said = "measured together"
    if cost is None:
        known = [removal.impact for removal in plan.removals]
        cost = None if None in known else sum(impact or 0.0 for impact in known)
        said = "the sum of each alone"
    costs = ["impacts are not known" if cost is None else f"impact {impact_text(cost)}, {said}"]
    if data.held_out is not None:
        is_later = data.distillation is not None and data.distillation.kept
        costs.append(kept_text(data.held_out) + (", before the distillation" if is_later else ""))
    return f"{', '.join(parts)}; {'; '.join(costs)}."


def kept_text(verdict: HeldOutVerdict) -> str:
    """The share of the original's output that is kept, on held-out data."""
    if math.isnan(verdict.after.divergence):
        return "the output on held-out data is not finite"
    what = "of the predictions keep their class" if verdict.after.kind == "distribution" else "of the output is kept"
    return f"{verdict.after.kept:.1%} {what} on {verdict.after.num_samples} held-out samples"


def _offer_line(data: ReportData) -> str:
    screen = data.screen
    if screen is None:
        return "No plan was made."
    if not screen.cheapest:
        return f"Nothing can leave now. {screen.calibration}."
    up_to = "up to " if screen.is_predicted else ""
    share = amount_text(screen.most.num_params, data.num_params)
    macs = ""
    if screen.most.macs is not None and screen.totals.macs:
        macs = f" and {screen.most.macs / screen.totals.macs:.1%} of the MACs"
    return f"Can leave now, together: {up_to}{share} parameters{macs}. No plan was made yet."


#: Figures that are shown in large type, where there are any.
_TILES = ("parameters", "MACs", "memory in all, peak", "latency")


def tiles(data: ReportData) -> Markup | None:
    """The changes that a reader looks for first; None without a plan."""
    rows = {row[0]: row for row in (*data.figures, *data.fidelity)}
    shown = [rows[name] for name in _TILES if name in rows and rows[name][3] not in ("", "—")]
    if not shown:
        return None
    if data.held_out is not None and not math.isnan(data.held_out.after.divergence):
        kept, what = kept_text(data.held_out).split(" ", 1)
        shown.append(("held-out data", what, "", kept))
    parts = [
        element(
            "div",
            element("dt", label),
            element("dd", change.partition(" [")[0], class_="big"),
            element("dd", f"{before} → {after}" if after else before, class_="fine"),
        )
        for label, before, after, change in shown
    ]
    return element("dl", parts, class_="tiles")


def figures_section(data: ReportData) -> Markup:
    """Sizes, and the comparison of outputs where one was made."""
    has_after = any(row[2] for row in data.figures)
    heads = ("", "original", "pruned", "change") if has_after else ("", "original")
    tables = [_figures(data.figures, heads, "Sizes of the original and the pruned model" if has_after else "Size")]
    if data.fidelity:
        heads = ("", "original", "pruned", "both compared")
        tables.append(_figures(data.fidelity, heads, f"Outputs of both models, on {data.fidelity_on}"))
    if data.inputs:
        tables.append(element("p", f"Counted in one forward on {data.inputs}.", class_="fine"))
    return section("figures", "Before and after" if has_after else "The model", tables)


def _figures(rows: Sequence[FigureRow], heads: Sequence[str], caption: str) -> Markup:
    body: list[Markup] = []
    for label, *cells in rows:
        figures = [element("td", cell, class_="num") for cell in cells[: len(heads) - 1]]
        body.append(element("tr", element("th", label, scope="row"), figures))
    return scrolled_table(caption, heads, body)


# ---- removals, refusals, notes ---------------------------------------------------------------------------------------


def removals_section(data: ReportData) -> Markup | None:
    """The removals of the plan."""
    if data.plan is None or not data.plan.removals:
        return None
    plan = data.plan
    heads = ("Groups that leave", "How", "Parameters", "Impact", *(["In draws"] if _has_draws(plan.removals) else []))
    rows = [_removal(removal, data) for removal in plan.removals]
    lead = f"Chosen by {plan.strategy}, granularity {plan.granularity}, seed {plan.seed}. Impact: {plan.impact_unit}."
    if plan.needs_layerprune:
        lead += " Load the result with layerprune.load_pruned: stand-ins take the places of what leaves."
    table = scrolled_table("Removals of the plan", heads, rows, class_="removals")
    return section("removals", "What leaves", table, lead=lead)


def _has_draws(removals: Sequence[PlannedRemoval]) -> bool:
    return any(removal.recurrence is not None for removal in removals)


def _removal(removal: PlannedRemoval, data: ReportData) -> Markup:
    total = data.plan.num_params_before if data.plan is not None else data.num_params
    names = [[element("span", name, class_="name"), element("br")] for name in removal.groups]
    interval = removal.impact_interval
    impact = "unknown" if removal.impact is None else impact_text(removal.impact)
    if interval is not None:
        impact += f" [{', '.join(map(impact_text, interval))}]"
    cells = [
        element("th", names, scope="row"),
        element("td", removal.kind, element("span", removal.name, class_="fine name")),
        element("td", amount_text(removal.num_params, total), class_="num"),
        element("td", impact, class_="num"),
    ]
    if data.plan is not None and _has_draws(data.plan.removals):
        draws = "" if removal.recurrence is None else f"{removal.recurrence:.0%}"
        cells.append(element("td", draws, class_="num"))
    return element("tr", cells)


def refusals_section(data: ReportData) -> Markup | None:
    """The groups that stay, counted by reason."""
    refused = [(number, group) for number, group in enumerate(data.groups) if group.verdict != "removable"]
    if not data.groups:
        return None
    by_code: dict[str, list[tuple[int, Group]]] = {}
    for number, group in refused:
        by_code.setdefault(group.reason_code, []).append((number, group))
    lists = [_refusals(code, some) for code, some in sorted(by_code.items(), key=lambda pair: -len(pair[1]))]
    lead = f"{len(refused)} of {len(data.groups)} groups stay; each line is one reason."
    if not refused:
        return section("refusals", "What stays", lead="Every group can leave.")
    return section("refusals", "What stays, and why", lists, lead=lead)


def _refusals(code: str, some: Sequence[tuple[int, Group]]) -> Markup:
    items = [
        element("li", element("button", group.name, type="button", class_="name open", data_group=n), " ", group.reason)
        for n, group in some
    ]
    known = code.upper() in RefusalCode.__members__
    title = code.replace("_", " ") if known else code or "no reason given"
    count = f"{len(some)} {'group' if len(some) == 1 else 'groups'}"
    head = element("summary", element("strong", title), " ", element("span", count, class_="count"))
    return element("details", head, element("ul", items, class_="reasons"))


def notes_section(data: ReportData) -> Markup | None:
    """Remarks for the user: those of the model, then those of the plan."""
    own = () if data.plan is None else data.plan.notes
    notes = list(dict.fromkeys([*data.notes, *own]))
    if not notes:
        return None
    return section("notes", "Notes", element("ul", [element("li", note) for note in notes]))


def reproduction_section(data: ReportData) -> Markup:
    """Code, command line, versions, seed and fingerprint."""
    made = data.reproduction
    rows = [*made.versions.items(), *([] if made.seed is None else [("seed", str(made.seed))])]
    rows += [("fingerprint", made.fingerprint)] if made.fingerprint else []
    facts = [[element("dt", name), element("dd", value, class_="name")] for name, value in rows]
    parts: list[Content] = [element("h3", "In Python"), element("pre", element("code", made.code), tabindex="0")]
    if made.command:
        parts += [element("h3", "On the command line"), element("pre", element("code", made.command), tabindex="0")]
    if data.plan is not None:
        button = element("button", "Download plan.json", type="button", id="download", class_="primary")
        parts.append(element("p", button, class_="needs-script"))
    return section("reproduce", "How to reproduce", parts, element("dl", facts, class_="facts"))
