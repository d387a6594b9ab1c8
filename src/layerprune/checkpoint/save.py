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
from layerprune.plan import PlanGiven, PruningPlan, merged, placed_plans, plan_of

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
    """Save a pruned model: weights as safetensors, its plan, and a manifest with the SHA-256 of each file.

    The folder appears when all files are on the disk. An existing artefact is replaced in one step, so a crash leaves
    either the old or the new artefact, complete. The folder holds no pickle and no code: :func:`load_pruned` needs the
    unpruned model's class.

    Args:
        model: the pruned model, with its current weights; it is not changed.
        folder: a new or empty folder, or an artefact to replace.
        plan: the plan that pruned the model (a plan, its JSON text or dict, or the path of its file), or several in
            order; None for the plans recorded in the model, which its copies and models that hold it keep.
        figures: measured values of the pruned model by name, for the manifest.
        max_shard_bytes: upper bound of a weights file, in bytes, unless a single tensor is larger.

    Returns:
        The folder.

    Raises:
        CheckpointError: the plan is not known, safetensors cannot hold a tensor of the model, or the folder cannot be
            written or holds other files. An existing folder is as it was.
    """
    model, target = unwrap(model), path_of(folder).absolute()
    placed = placed_plans(model) if plan is None else merged([("", one) for one in _several(plan)])
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
    """Write the plans and, last, the manifest; ``files`` are all other files, ``weights`` some of them."""
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
    """Raise :class:`CheckpointError` where a model still has modules that a plan removes."""
    if any(edit.kind == "shorten" for edit in plan.edits):  # the elements have other numbers by now
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
    """Raise :class:`CheckpointError` unless a folder is new, empty, or an artefact with no other files."""
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
