"""``layerprune run``: runs a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerprune.cli.console import print_json, working
from layerprune.cli.options import JsonOption

if TYPE_CHECKING:
    from layerprune.recipe import RecipeRun


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A file of YAML, TOML or JSON.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the recipe, and tell what would run.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of all results, in place of the recipe's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe: plan, prune, and as it says distill, compare, export, report; each stage is kept once it finished.

    The same call goes on after a break; what has changed since runs again, with what depends on it, and the command
    says why. The folder also gets the resolved recipe and the versions of all packages. Paths are those of the current
    folder.

    With --json: an object of `out`, `model` (the folder of the saved model) and `stages`, each of `name`, `does`,
    `status` (kept, ran, or would run), `why`, `seconds`, `files` and `result`.
    """
    kept = _Kept(recipe)
    with working(as_json=as_json, kept=kept.text):
        from layerprune.recipe import read_recipe, run_recipe

        read = read_recipe(recipe)
        read = read if out is None else read.model_copy(update={"out": str(out)})
        done = run_recipe(read, dry_run=dry_run, told=kept.tell)
    if as_json:
        print_json(_record(done, dry_run))
        return
    for each in _record(done, dry_run)["stages"]:
        why = f": {each['why']}" if each["why"] else ""
        typer.echo(f"{each['name']}: {each['status']}{why}" + (f"\n  {each['does']}" if dry_run else ""))
        known = {name: value for name, value in each["result"].items() if value not in (None, "")}
        shown = {name: f"{value:.4g}" if isinstance(value, float) else f"{value}" for name, value in known.items()}
        figures = ", ".join(f"{name} {value}" for name, value in shown.items())
        if figures:
            typer.echo(f"  {figures}")
    if done.model is not None:
        typer.echo(f"The model is in {done.model}")


class _Kept:
    """The stages that have finished, for the message after Ctrl-C."""

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        self.finished: list[str] = []

    def tell(self, stage: str, text: str) -> None:
        """Print the news of a stage to standard error, and note it if it has finished."""
        if text.startswith(("kept", "finished")):
            self.finished.append(stage)
        typer.echo(f"{stage}: {text}", err=True)

    def text(self) -> str:
        """What is kept, and how to go on."""
        stages = ", ".join(self.finished) or "no stage"
        return f"{stages} finished and kept; `layerprune run {self.recipe}` goes on from there"


def _record(done: RecipeRun, dry_run: bool) -> dict[str, Any]:
    stages: list[dict[str, Any]] = []
    for stage in done.stages:
        why = done.again[stage.name]
        status = "kept" if why is None else "would run" if dry_run else "ran"
        state = done.states.get(stage.name) if status != "would run" else None
        stages.append(
            {
                "name": stage.name,
                "does": stage.does,
                "status": status,
                "why": why,
                "seconds": None if state is None else state.seconds,
                "files": list(stage.files),
                "result": {} if state is None else state.result,
            }
        )
    return {"out": str(done.out), "model": None if done.model is None else str(done.model), "stages": stages}
