"""Saves a pruned model as a folder, complete or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from torch import nn

from layerprune.checkpoint.atomic_dir import staged, sweep
from layerprune.checkpoint.manifest import (
    NAME,
    Manifest,
    TensorRecord,
    check_extra,
    is_artefact,
    path_of,
    read_manifest,
    record_of,
)
from layerprune.checkpoint.weights import check_extra_state, record_tensors, write_text, write_weights
from layerprune.edits import taken_out
from layerprune.environment import locked
from layerprune.errors import CheckpointError
from layerprune.modules import num_params, parameters, unwrap
from layerprune.plan import PlanGiven, PruningPlan, placed_plans, plan_of

MAX_SHARD_BYTES = 5_000_000_000


@locked
def save_pruned(
    model: nn.Module,
    folder: str | Path,
    *,
    plan: PlanGiven | Sequence[PlanGiven] | None = None,
    figures: Mapping[str, float] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Save a pruned model: its weights as safetensors, its plan, and a manifest with the SHA-256 of each file.

    The folder appears when everything is on the disk. An artefact that is there already is replaced in one step:
    whenever the process dies, the old or the new one is there, complete. No pickle is written, and no code: to load it,
    :func:`load_pruned` needs the unpruned model's class.

    Args:
        model: what pruning returned, at whatever it was trained to since; it stays as it is.
        folder: a new or empty folder, or an artefact to replace.
        plan: what the model was pruned by (a plan, its JSON text or dict, or the path of its file), or several, in
            order; None for what the model itself remembers, as copies of
            it do, and a model that holds a pruned one.
        figures: what was measured on the pruned model, by name; kept in the manifest.
        max_shard_bytes: the most that one weights file holds, unless a single tensor is larger.

    Returns:
        The folder.

    Raises:
        CheckpointError: the plan is not known, the model holds what safetensors has no form for, or the folder cannot
            be written, or holds anything else. What was there is as it was.
    """
    model, target = unwrap(model), path_of(folder).absolute()
    placed = placed_plans(model) if plan is None else tuple(("", one) for one in _several(plan))
    if not placed:
        raise CheckpointError(
            f"it is not known how this {type(model).__name__} was pruned: it is not pruned, or a part of what was; "
            "save what prune returned, or give plan=, the plan that it was pruned by"
        )
    _check_options(max_shard_bytes, {} if figures is None else figures)
    if plan is not None:
        _check_plan(model, placed[-1][1])
    check_extra_state(model)
    tensors, record = record_tensors(model)
    check_target(target)
    with staged(target) as staging:
        weights, files = write_weights(staging, tensors, max_shard_bytes)
        write_manifest(staging, model, placed, weights, files, record, figures or {})
    return Path(folder)


def write_manifest(
    staging: Path,
    model: nn.Module,
    placed: Sequence[tuple[str, PruningPlan]],
    weights: Sequence[str],
    files: Sequence[str],
    record: TensorRecord,
    figures: Mapping[str, float],
) -> None:
    """Write the plans and, last, the manifest of a folder that holds everything else.

    Args:
        staging: the folder.
        model: what was saved in it.
        placed: its plans, each with the name of the module that it was made for.
        weights: the names of the weights files.
        files: the names of all files, these included.
        record: what the weights files do not say.
        figures: what was measured on the model.
    """
    names = ["plan.json", *(f"plan-{i}.json" for i in range(2, len(placed) + 1))][: len(placed)]
    for name, (_, plan) in zip(names, placed, strict=True):
        write_text(staging / name, plan.to_json() + "\n")
    places = [place for place, _ in placed]
    manifest = Manifest(
        versions={name: version(name) for name in ("layerprune", "torch", "safetensors")},
        model=type(model).__name__,
        num_params=num_params(model),
        figures={name: float(value) for name, value in figures.items()},
        plans=tuple(names),
        places=tuple(places) if any(places) else (),
        schema_version=2 if any(places) or record.entries else 1,
        weights=tuple(weights),
        files={name: record_of(staging / name) for name in sorted([*files, *names])},
        tensors=record,
    )
    write_text(staging / NAME, manifest.to_json())


def _several(plan: PlanGiven | Sequence[PlanGiven]) -> tuple[PruningPlan, ...]:
    if isinstance(plan, Sequence) and not isinstance(plan, str):
        return tuple(map(plan_of, plan))
    return (plan_of(plan),)


def _check_options(max_shard_bytes: int, figures: Mapping[str, float]) -> None:
    if not isinstance(max_shard_bytes, int) or max_shard_bytes < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CheckpointError(f"max_shard_bytes is {max_shard_bytes!r:.60}; give the bytes that one file may hold")
    if not isinstance(figures, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CheckpointError(f"figures is a {type(figures).__name__}; give a dict, as figures={{'accuracy': 0.93}}")
    for name, value in figures.items():
        if not isinstance(name, str) or not isinstance(value, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CheckpointError(f"figures holds {name!r:.40}: {value!r:.60}; give numbers by name")
    if unknown := [name for name, value in figures.items() if not math.isfinite(value)]:
        raise CheckpointError(f"figure '{unknown[0]}' is no number that JSON has: leave it out")


def _check_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Raise :class:`CheckpointError` where a model still has what a plan takes out."""
    if any(edit.kind == "shorten" for edit in plan.edits):  # names have moved up since
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in taken_out(plan.edits):
        module = modules.get(name)
        if module is not None and next(parameters(module), None) is not None:
            raise CheckpointError(
                f"the plan takes '{name}' out, and this {type(model).__name__} still has it: "
                "give the plan that it was pruned by"
            )


def check_target(target: Path) -> None:
    """Raise :class:`CheckpointError` unless a folder is new, empty, or an artefact and nothing else."""
    sweep(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file: name a new folder")
    if not is_artefact(target):
        if any(target.iterdir()):
            raise CheckpointError(f"{target} is not empty and holds no artefact of layerprune: name a new folder")
        return
    try:
        check_extra(target, read_manifest(target, complete=False))
    except CheckpointError as error:
        raise CheckpointError(f"{target} is not replaced: {error}") from error
