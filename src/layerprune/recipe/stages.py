"""The stages of a recipe, what each depends on, and which of them have finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from layerprune.errors import RecipeError
from layerprune.recipe.records import PruningRecipe
from layerprune.sources import identity_of

STATE = "run.json"
_FORMAT = "layerprune run"


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe.

    Attributes:
        name: plan, prune, distill, compare, or the file of an export.
        does: what it does, in a few words.
        basis: all that its result depends on, as JSON.
        files: what it writes in the output folder.
    """

    name: str
    does: str
    basis: Mapping[str, Any]
    files: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.basis, sort_keys=True).encode()).hexdigest()


class StageState(BaseModel):
    """A stage that has finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    basis: dict[str, Any] = Field(description="all that the result depends on")
    files: tuple[str, ...]
    finished: str = Field(description="date and time")
    seconds: float
    result: dict[str, Any] = Field(description="its figures")


class RunState(BaseModel):
    """The stages of an output folder that have finished, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = _FORMAT
    schema_version: int = 1
    stages: dict[str, StageState] = Field(default_factory=dict)


def stages_of(recipe: PruningRecipe) -> list[Stage]:
    """The stages in order; each depends on those before it."""
    own, data = recipe.model_dump(mode="json"), recipe.data
    read = {"batch_size": data.batch_size, "samples": data.samples, "length": data.length, "column": data.column}

    def named(*specs: str | None) -> dict[str, Any]:
        return {"data": [None if spec is None else [spec, identity_of(spec)] for spec in specs], "batches": read}

    plan_file = recipe.plan.file
    basis: dict[str, Any] = {
        "model": {**own["model"], "content": identity_of(recipe.model.source)},
        **named(data.calibration),
        "pruner": own["pruner"],
        "plan": own["plan"] | ({"content": _content(plan_file)} if plan_file is not None else {}),
    }
    found = [Stage("plan", _plan_text(recipe), basis, ("plan.json",))]
    last = _after(found[-1], {"prune": own["prune"], "save": own["save"]})
    repair = "" if data.calibration is None or recipe.prune.repair == "none" else ", repaired"
    found.append(Stage("prune", f"carry the plan out{repair}, and save the model", last, ("pruned",)))
    if recipe.distill is not None:
        taught = named(data.distill or data.calibration, data.held_out)
        last = _after(found[-1], {"distill": own["distill"], **taught, "save": own["save"]})
        text = (
            f"train for {recipe.distill.num_epochs} passes over {data.distill or data.calibration}, and save the model"
        )
        found.append(Stage("distill", text, last, ("distilled", "distillation.json")))
    model = found[-1]
    if (compares := recipe.compares) is not None:
        last = _after(model, {"compare": compares.model_dump(mode="json"), **named(data.compare)})
        found.append(Stage("compare", f"compare both models on {data.compare}", last, ("compare.json",)))
    for place, each in enumerate(recipe.export):
        last = _after(model, {"export": own["export"][place]})
        found.append(Stage(f"export {each.file}", f"write {each.file} ({each.to}), checked", last, (each.file,)))
    if recipe.report is not None:
        told = [{"stage": stage.name, "fingerprint": stage.fingerprint} for stage in found]
        last = _after(found[-1], {"report": own["report"], "tells": told})
        found.append(Stage("report", f"write {recipe.report.file}", last, (recipe.report.file,)))
    return found


def _after(stage: Stage, basis: dict[str, Any]) -> dict[str, Any]:
    return {"after": {"stage": stage.name, "fingerprint": stage.fingerprint}, **basis}


def _content(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise RecipeError(f"plan.file: {path} cannot be read: {error}") from error


def _plan_text(recipe: PruningRecipe) -> str:
    part = recipe.plan
    if part.file is not None:
        return f"take the plan {part.file}"
    if part.unused:
        return "plan the removal of what never runs"
    how = ", ".join(f"{name}={value:g}" for name, value in part.budgets.items()) or ", ".join(part.groups)
    measured = "" if recipe.data.calibration is None else f", measured on {recipe.data.calibration}"
    return f"choose removals for {how}{measured}"


def read_state(out: Path) -> RunState:
    """The finished stages of an output folder; none in a new or empty one.

    Raises:
        RecipeError: the folder holds something else, or its record was damaged.
    """
    path = out / STATE
    if not path.is_file():
        if out.exists() and not out.is_dir():
            raise RecipeError(f"{out} is a file; name a folder as out")
        others = [each.name for each in out.iterdir() if each.name != ".lock"] if out.is_dir() else []
        if others:
            raise RecipeError(f"{out} holds {others[0]} and is no folder of a run; name a new or empty folder as out")
        return RunState()
    try:
        state = RunState.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise RecipeError(f"{path} cannot be read; remove it to run all stages again: {error}") from error
    if state.format != _FORMAT or state.schema_version > 1:
        raise RecipeError(f"{path} was written by a newer layerprune: upgrade, or name another folder as out")
    return state


def why_again(stage: Stage, state: RunState, out: Path) -> str | None:
    """Why a stage has to run; None where its result is kept."""
    known = state.stages.get(stage.name)
    if known is None:
        return "it has not finished before"
    if known.fingerprint != stage.fingerprint:
        return _difference(known.basis, stage.basis) or "what it depends on has changed"
    missing = [name for name in stage.files if not (out / name).exists()]
    return f"{missing[0]} is gone" if missing else None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any], name: str = "") -> str:
    """The first field that changed, with both values."""
    for key in {**before, **now}:
        old, new, place = before.get(key), now.get(key), f"{name}.{key}" if name else key
        if old == new:
            continue
        if key == "after":
            return f"{now['after']['stage']} runs again"
        if key == "content":
            return f"the files of {name} have changed"
        if key == "data":
            return "its data have changed"
        if isinstance(old, dict) and isinstance(new, dict):
            return _difference(old, new, place)
        return f"{place} was {old!r:.60}, and is {new!r:.60}"
    return ""
