"""Runs the stages of a recipe in order, and keeps each that has finished."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from layerprune.checkpoint import write_record
from layerprune.environment import describe_environment
from layerprune.errors import RecipeError
from layerprune.recipe.records import PruningRecipe
from layerprune.recipe.stages import STATE, RunState, Stage, StageState, read_state, stages_of, why_again
from layerprune.recipe.work import Work, plain
from layerprune.sources import check_source

if sys.platform != "win32":
    import fcntl


@dataclass(kw_only=True)
class RecipeRun:
    """A run of a recipe.

    Attributes:
        out: the output folder.
        stages: all stages in order, with what they do.
        again: stage → why it has run, or has to; None where its result is kept.
        states: the finished stages.
        model: the folder of the saved model; None after a dry run.
    """

    out: Path
    stages: list[Stage]
    again: dict[str, str | None]
    states: dict[str, StageState] = field(default_factory=dict[str, StageState])
    model: Path | None = None


def run_recipe(
    recipe: PruningRecipe,
    *,
    dry_run: bool = False,
    told: Callable[[str, str], None] = lambda stage, text: None,
) -> RecipeRun:
    """Run the stages that have not finished before, or whose settings, data or earlier stages have changed.

    Each stage is kept in the output folder once it has finished, so that the same call goes on after a break at any
    point. A stage's files are written whole or not at all. The folder also gets the resolved recipe (``recipe.json``)
    and the versions of all packages (``environment.json``).

    Args:
        recipe: the recipe.
        dry_run: only check, and tell what would run; nothing is built or written.
        told: called with a stage and a text when it starts, when it has finished, and when it is kept.

    Returns:
        The stages with their figures.

    Raises:
        RecipeError: the output folder holds something else, or another run is at work in it.
        LayerPruneError: a stage fails, with its own type.
    """
    out = Path(recipe.out)
    _check_sources(recipe)
    stages, state = stages_of(recipe), read_state(out)
    run = RecipeRun(out=out, stages=stages, again=_to_run(stages, state, out), states=dict(state.stages))
    if dry_run:
        return run
    with _alone(out):
        write_record(out / "recipe.json", recipe.model_dump(mode="json"))
        write_record(out / "environment.json", describe_environment())
        work, kept = (
            Work(recipe, out),
            {name: each for name, each in state.stages.items() if run.again.get(name) is None},
        )
        kept = {stage.name: kept[stage.name] for stage in stages if stage.name in kept}
        _write(out, kept)  # a stage that runs again is not finished, whatever happens to this run
        for stage in stages:
            if (why := run.again[stage.name]) is None:
                told(stage.name, f"kept, finished {kept[stage.name].finished}")
                continue
            told(stage.name, f"{stage.does} ({why})")
            start = time.perf_counter()
            result = plain(work.run(stage))
            seconds = round(time.perf_counter() - start, 2)
            kept[stage.name] = _finished(stage, seconds, result)
            _write(out, kept)
            told(stage.name, f"finished in {seconds:.1f} s")
    run.states = kept
    run.model = out / ("distilled" if recipe.distill is not None else "pruned")
    return run


def _check_sources(recipe: PruningRecipe) -> None:
    check_source(recipe.model.source, is_data=False)
    data = recipe.data
    for spec in (data.calibration, data.distill, data.held_out, data.compare):
        if spec is not None:
            check_source(spec, is_data=True)


def _to_run(stages: list[Stage], state: RunState, out: Path) -> dict[str, str | None]:
    """Why each stage has to run; a stage after one that runs has to run, too."""
    found: dict[str, str | None] = {}
    for stage in stages:
        why = why_again(stage, state, out)
        before = stage.basis.get("after", {}).get("stage")
        if why is None and before is not None and found[before] is not None:
            why = f"{before} runs again"
        found[stage.name] = why
    return found


def _finished(stage: Stage, seconds: float, result: dict[str, Any]) -> StageState:
    return StageState(
        fingerprint=stage.fingerprint,
        basis=dict(stage.basis),
        files=stage.files,
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=seconds,
        result=result,
    )


def _write(out: Path, states: dict[str, StageState]) -> None:
    write_record(out / STATE, RunState(stages=states).model_dump(mode="json"))


@contextmanager
def _alone(out: Path) -> Generator[None]:
    """Hold the output folder for this process; the system lets go of it when the process ends in any way."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RecipeError(f"{out} cannot be written: {error.strerror or error}") from error
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RecipeError(f"another run is at work in {out}; wait for it, or name another folder") from None
        yield
    finally:
        os.close(lock)
