"""The model card: removals, measured figures, and how to load the pruned model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from layerprune.checkpoint.manifest import Manifest
from layerprune.plan import PruningPlan


def card_text(manifest: Manifest, plans: Sequence[PruningPlan], repo: str, base_model: str | None = None) -> str:
    """Write the README of a pruned model on a hub; ``base_model`` is the repository of the unpruned model."""
    first, last = plans[0], plans[-1]
    head = ["---", "library_name: layerprune", "tags:", "- layerprune", "- pruned"]
    head += [f"base_model: {base_model}"] if base_model else []
    before, after = first.num_params_before, last.num_params_after
    share = f" ({1 - after / before:.1%} fewer)" if before else ""
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# {_plain(repo)}",
            "",
            f"A `{_code(first.model)}` without some of its layers: {before:,} → {after:,} parameters{share}.",
            "",
            "## Use",
            "",
            "```python",
            "from layerprune import from_hub",
            "",
            f"# {first.model} is the unpruned model's class, made as it was for pruning; its weights do not matter.",
            f'model = from_hub("{repo}", factory=lambda: {first.model}(...))',
            "```",
            "",
            "## What was removed",
            "",
            "| removal | layers, by their transform | parameters | impact |",
            "|---|---|---|---|",
            *_removals(plans),
            "",
            f"Impact: {_plain(last.impact_unit)}. Chosen by `{_code(last.strategy)}`, seed {last.seed}.",
            "",
            *_figures(manifest, last),
            *(f"- {_plain(note)}" for plan in plans for note in plan.notes),
            "",
            "`plan.json` holds all of this, and replays on another copy of the model; `manifest.json` holds the "
            "SHA-256 of each file. There is no pickle and no code here.",
            "",
        ]
    )


def _removals(plans: Sequence[PruningPlan]) -> Iterator[str]:
    for plan in plans:
        for removal in plan.removals:
            impact = "unknown" if removal.impact is None else f"{removal.impact:.4g}"
            groups = ", ".join(f"`{_code(name)}`" for name in removal.groups)
            name = f"round {removal.round}: {removal.name}" if plan.rounds else removal.name
            yield f"| {_plain(name)} | {groups} | {removal.num_params:,} | {impact} |"


def _figures(manifest: Manifest, plan: PruningPlan) -> Iterator[str]:
    if plan.figures or manifest.figures:
        yield from ("## Figures", "", "| what | before | after |", "|---|---|---|")
        yield from (f"| {_plain(f.name)} | {f.before:,.6g} | {f.after:,.6g} |" for f in plan.figures)
        yield from (f"| {_plain(name)} | | {value:,.6g} |" for name, value in manifest.figures.items())
        yield ""


def _plain(text: str) -> str:
    marks = {mark: f"\\{mark}" for mark in "\\`*_[]<>|#"}
    return " ".join("".join(marks.get(letter, letter) for letter in text).split())


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").replace("|", "¦").split())
