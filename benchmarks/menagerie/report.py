"""The zoo's report: what the results file says, as Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from menagerie.outcomes import NOT_APPLICABLE, OK
from menagerie.results import FINE, Results

_LIBRARIES = ("torchvision", "timm", "transformers")
_DEPTHS = ("plan", "full")
#: Seen from the page of a library.
_SUMMARY_PAGE = "../zoo.md"
_NUM_WORST = 10
_NUM_REASONS = 3
_WIDTH = 160
#: The checks in the order in which a reader asks for them; the letters are the columns of the tables.
_CHECKS: Mapping[str, str] = {
    "plan": "the plan is made",
    "alone": "five random safe groups, each removed alone, leave what the simulation computes",
    "prune": "pruned to at most 30 %",
    "eval": "the original's output structure at two batch sizes, and at two sizes or lengths where the model has them",
    "oracle": "the pruned model computes what the simulation computes",
    "train": "forward and backward in train mode, where the original trains",
    "params": "the parameters that the plan promises",
    "untouched": "the original is as it was: tensors, modes, hooks, attributes, RNG state",
    "replay": "weights saved and loaded into a replayed copy: the same output bit for bit",
}
_KINDS = ("planned", "ok", "failed", "refused", "foreign", "timeout", "killed (memory)", "crashed", "not built")

Row = Mapping[str, Any]


def as_markdown(results: Results) -> str:
    """Write the summary; the same results give the same text."""
    rows = [row for _, row in sorted(results.rows.items())]
    parts = [
        "# Architectures",
        "Written by `make zoo` from `benchmarks/results/zoo.jsonl`. *Plan*: built on the meta device and planned. "
        "*Full*: random weights in float64, and every check below. The site has a page for each library with a row for "
        "each model.",
        _versions(results, rows),
        "## Summary",
        _summary(rows),
        "### Checks at full depth",
        _checks(rows),
        "### Removable parameters",
        _removable(rows),
        *_troubles(rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_pages(results: Results) -> dict[str, str]:
    """Write a page for each library, with a row for each model."""
    rows = [row for _, row in sorted(results.rows.items())]
    pages: dict[str, str] = {}
    for library in _LIBRARIES:
        parts = [
            f"---\nsearch: {{exclude: true}}\n---\n\n# {library}, each model",
            f"[What the checks are]({_SUMMARY_PAGE}#checks-at-full-depth). *Safe*: groups that can leave. "
            "*Removable*: the share of the parameters that a proven removal takes. *Removed*: the share that a plan of "
            "at most 30 % took. *s*: seconds of the run.",
        ]
        for depth in reversed(_DEPTHS):
            some = [row for row in rows if (row["library"], row["depth"]) == (library, depth)]
            if some:
                title = "Checked in full" if depth == "full" else "Planned"
                parts += [f"## {title} ({len(some)})", (_full if depth == "full" else _plans)(some)]
        pages[library] = "\n\n".join(parts) + "\n"
    return pages


def _versions(results: Results, rows: Sequence[Row]) -> str:
    commits = sorted({row.get("commit", "unknown") for row in rows})
    named = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return f"{named}; commits {', '.join(commits)}."


# ---- summary ------------------------------------------------------------------------------------------------------


def _summary(rows: Sequence[Row]) -> str:
    shown = [kind for kind in _KINDS if any(_kind(row) == kind for row in rows)]
    lines: list[list[str]] = []
    for library in _LIBRARIES:
        for depth in _DEPTHS:
            some = [row for row in rows if row["library"] == library and row["depth"] == depth]
            if some:
                counts = Counter(map(_kind, some))
                built = len(some) - counts["not built"]
                good = sum(counts[kind] for kind in FINE)
                share = f"{good / built:.1%}" if built else "–"
                lines.append([library, depth, str(len(some)), *(str(counts[kind] or "") for kind in shown), share])
    return _table(["library", "depth", "models", *shown, "planned or ok, of those built"], lines)


def _kind(row: Row) -> str:
    return next((kind for kind in _KINDS if row["outcome"].startswith(kind)), "foreign")


def _checks(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for check, meaning in _CHECKS.items():
        cells = [_pass_rate([r for r in rows if r["library"] == library], check) for library in _LIBRARIES]
        lines.append([check, meaning, *cells])
    return _table(["check", "what has to hold", *_LIBRARIES], lines)


def _pass_rate(rows: Iterable[Row], check: str) -> str:
    outcomes = [row["checks"][check] for row in rows if check in row.get("checks", {})]
    applicable = [outcome for outcome in outcomes if not outcome.startswith(NOT_APPLICABLE)]
    return f"{sum(outcome == OK for outcome in applicable)} of {len(applicable)}" if applicable else "–"


def _removable(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for library in _LIBRARIES:
        for depth in _DEPTHS:
            shares = [
                row["removable"]
                for row in rows
                if (row["library"], row["depth"]) == (library, depth) and row.get("removable") is not None
            ]
            if shares:
                tenth = statistics.quantiles(shares, n=10, method="inclusive")[0] if len(shares) > 1 else shares[0]
                lines.append([library, depth, str(len(shares)), f"{statistics.median(shares):.1%}", f"{tenth:.1%}"])
    table = _table(["library", "depth", "models", "median", "worst tenth is below"], lines)
    known = [row for row in rows if (row["library"], row["depth"]) == ("timm", "full") and "removable" in row]
    worst = sorted((row for row in known if row["removable"] is not None), key=lambda row: row["removable"])
    text = "The share of parameters, embeddings and the head aside, that some proven removal takes whole or in part."
    if not worst:
        return f"{text}\n\n{table}"
    reasons = [[row["name"], f"{row['removable']:.1%}", _reasons(row)] for row in worst[:_NUM_WORST]]
    heading = f"The {min(_NUM_WORST, len(worst))} worst of timm at full depth, and what keeps their parameters:"
    return f"{text}\n\n{table}\n\n{heading}\n\n{_table(['model', 'removable', 'reasons'], reasons)}"


def _reasons(row: Row) -> str:
    some = row.get("reasons", [])[:_NUM_REASONS]
    return "; ".join(f"{reason} ({groups} groups, {params / row['params']:.0%})" for reason, groups, params in some)


def _troubles(rows: Sequence[Row]) -> list[str]:
    """List every failed check and every model without a plan, by what it met with."""
    found: dict[str, list[str]] = {}
    for row in rows:
        name = f"{row['name']} ({row['depth']})"
        if row["outcome"].startswith("failed"):
            for check, outcome in row["checks"].items():
                if outcome != OK and not outcome.startswith(NOT_APPLICABLE):
                    found.setdefault(f"{check}: {outcome}", []).append(name)
        elif row["outcome"] not in FINE:
            found.setdefault(row["outcome"], []).append(name)
    if not found:
        return []
    ranked = sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    lines = [[_short(what), str(len(names)), _few(names)] for what, names in ranked]
    return ["## What went wrong", _table(["what", "models", "which"], lines)]


def _few(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


# ---- one row a model ----------------------------------------------------------------------------------------------

_NUMBERS = ["layers", "groups", "safe", "removable", "removed"]


def _plans(rows: Sequence[Row]) -> str:
    lines = [[row["name"], *_numbers(row), f"{row['seconds']:.1f}", _verdict(row)] for row in rows]
    return _table(["model", *_NUMBERS, "s", "outcome"], lines)


def _full(rows: Sequence[Row]) -> str:
    lines = [
        [row["name"], *_numbers(row), _marks(row), f"{row['seconds']:.1f}", _verdict(row)]
        for row in sorted(rows, key=lambda row: (row["family"], row["name"]))
    ]
    legend = (
        f"Checks, in this order: {', '.join(_CHECKS)}; ✓ holds, – does not apply, ✗ fails, ? could not be verified."
    )
    return f"{legend}\n\n{_table(['model', *_NUMBERS, 'checks', 's', 'outcome'], lines)}"


def _numbers(row: Row) -> list[str]:
    counts = [str(row.get(key, "")) for key in ("layers", "groups", "safe")]
    shares = [row.get("removable"), row.get("removed")]
    return [*counts, *("" if share is None else f"{share:.1%}" for share in shares)]


def _marks(row: Row) -> str:
    return "".join(_mark(row["checks"].get(check, NOT_APPLICABLE)) for check in _CHECKS) if "checks" in row else ""


def _mark(outcome: str) -> str:
    if outcome == OK:
        return "✓"
    return "–" if outcome.startswith(NOT_APPLICABLE) else "?" if outcome.startswith("unverified") else "✗"


def _verdict(row: Row) -> str:
    """The outcome, and what the failed checks say; which checks did not apply is in the results file."""
    if not row["outcome"].startswith("failed"):
        return "" if row["outcome"] in FINE else _short(row["outcome"])
    bad = [
        f"{check}: {outcome}"
        for check, outcome in row["checks"].items()
        if outcome != OK and not outcome.startswith(NOT_APPLICABLE)
    ]
    return _short("; ".join(bad))


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
