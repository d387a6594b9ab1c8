"""The page: what was run, when, and what came of it; nothing that was not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROWS = {
    "kills": ("saves killed (`SIGKILL` at a random moment)", "lost: {lost}, stray after the next load: {stray}"),
    "artefacts": ("mutated artefacts", "detected: {detected:,}, not: {failures}"),
    "plans": ("mutated plans", "foreign exceptions or imports: {failures}"),
    "replays": ("replays of one plan in two processes", "weight hashes: {hashes}"),
    "graphs": ("random graphs pruned", "invalid or unlike the simulation: {failures}"),
    "programs": ("random programs pruned", "invalid or unlike the simulation: {failures}"),
    "threads": ("threads pruning one model at once", "results equal to that of one alone: {equal}"),
}


def as_markdown(state: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "# What survives",
        "",
        "Written by `make reliability`, which goes on where the last run ended; each row says how many were run.",
        "",
        "| what | how many | outcome | minutes | last run |",
        "|---|---|---|---|---|",
    ]
    for name, (what, outcome) in ROWS.items():
        if name in state and state[name]["done"]:
            record = state[name]
            told = outcome.format(**{**record["counts"], "failures": len(record["failures"])})
            minutes = f"{record['seconds'] / 60:.1f}"
            lines.append(f"| {what} | {record['done']:,} | {told} | {minutes} | {record['date']} |")
    return "\n".join([*lines, "", *_details(state)])


def _details(state: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    if "kills" in state:
        counts = state["kills"]["counts"]
        lines += [
            "- **Kills.** A forked child saves two models (4 MB) over each other in a loop, and is killed within its "
            "first three saves. Then the artefact is loaded, every hash checked, and must be one of the two models. "
            f"{counts['left by the dead']:,} of the dead left a staging folder behind. {counts['same']:,} left the "
            f"model that had been there, {counts['other']:,} the other one. A killed process loses nothing that is "
            "written; that files are on the disk before they get their name matters to a power cut, which nobody "
            "tried here.",
        ]
    if "artefacts" in state:
        kinds = {k: v for k, v in state["artefacts"]["counts"].items() if k != "detected"}
        told = ", ".join(f"{kind} ({number:,})" for kind, number in sorted(kinds.items()))
        lines += [f"- **Artefacts.** Each mutation is met by `load_pruned` and by `verify`: {told}."]
    if "plans" in state:
        counts = state["plans"]["counts"]
        lines += [
            f"- **Plans.** {counts['refused']:,} were refused; {counts['carried out']:,} were plans still, and were "
            "carried out to the number of parameters that they promise. No module was imported meanwhile.",
        ]
    if "graphs" in state:
        counts = state["graphs"]["counts"]
        lines += [
            f"- **Graphs.** {counts['removals']:,} removals and {counts['plans']:,} plans of them, in float64, are "
            "held against a simulation that runs the untouched model and substitutes tensors on the fly.",
        ]
    if "programs" in state:
        counts = state["programs"]["counts"]
        lines += [
            "- **Programs.** Forwards of 8 to 16 operations in any order: sums, products, concats and choices of "
            "earlier tensors, in place or not, and layers called in the ways that models have. "
            f"{counts['removals']:,} removals and {counts['plans']:,} plans of them, likewise.",
        ]
    for name, record in state.items():
        lines += [f"- Failed, {name}: {failure}" for failure in record["failures"][:20]]
    return [*lines, ""]
