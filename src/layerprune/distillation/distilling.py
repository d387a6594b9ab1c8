"""Trains a copy of a pruned model, and writes the best weights into the pruned model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerprune.checkpoint import digest
from layerprune.distillation.accelerator import accelerating
from layerprune.distillation.recipe import recipe_of
from layerprune.distillation.report import Distillation
from layerprune.distillation.setup import DistillationSetup, setup_of, weights_of
from layerprune.distillation.snapshots import Snapshots
from layerprune.distillation.trainer import Trainer
from layerprune.distillation.training_state import TrainingState
from layerprune.edits import Edit
from layerprune.environment import locked, progress_bar
from layerprune.fidelity import Kind
from layerprune.modules import named_parameters, unwrap, write

CACHE_BYTES = 2 * 2**30


def distill(
    original: nn.Module,
    pruned: nn.Module,
    data: Iterable[Any],
    *,
    held_out: Iterable[Any] | None = None,
    edits: Sequence[Edit] | None = None,
    kind: Kind | None = None,
    cache_bytes: int = CACHE_BYTES,
    cache_folder: str | Path | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Distillation:
    """Train a pruned model to reproduce the original's outputs; no labels are needed.

    AdamW trains a copy. The loss compares outputs (KL divergence of logits, else distance and angle) and hidden states
    with those of the original. The weights with the least divergence on held-out data are written into the pruned model
    at the end, all or none. If no weights are better than the first, or the loss diverges before, the model stays as it
    is. On ``KeyboardInterrupt`` the best weights so far are written, and the interrupt is raised again; a second
    interrupt during the write restores the weights from before.

    The copies run in eval mode: dropout is off, and batch norms keep their statistics. Parameters without
    ``requires_grad`` stay frozen. The original is never changed; modes, flags, hooks, buffers and RNG of both models
    are kept. The same call gives the same weights on the same machine and number of threads.

    Args:
        original: the model before pruning.
        pruned: the pruned model, best after :func:`repair`.
        data: batches in the form that the forward takes; read once and kept in memory. Short sequences of similar
            length in a batch train fastest. Tokens masked by ``attention_mask`` are left out.
        held_out: batches that choose the best weights; every eighth batch of ``data`` if None.
        edits: ``plan.edits``; needed where the pruning renumbered the layers of a container. If None, the edits of the
            plan that pruned ``pruned`` in this process; a copy of ``pruned`` does not carry them.
        kind: ``distribution`` for logits, ``values`` for other numbers; derived from the model and its output if None.
        cache_bytes: memory for the original's outputs, each of which is computed once.
        cache_folder: folder for outputs that do not fit into ``cache_bytes``, as safetensors, also for later runs. If
            None, the original runs again for each of these batches, and the report counts them.
        checkpoint: a folder of its own for safetensors and JSON, written after each evaluation on held-out data. The
            same call resumes from it, and ends with the same weights as a training without a break.
        progress: whether to show a progress bar; None for only where standard error is a terminal.
        **settings: fields of :class:`Recipe`, as ``num_epochs=3``, ``learning_rate=3e-4``, ``temperature=1.0``,
            ``hidden_weight=1.0``, ``lora_rank=0``, ``mixed_precision="no"``, ``seed=0``.

    Returns:
        Steps, losses, divergence before and after, and why the training ended.

    Raises:
        DistillationError: a setting is invalid, a package of the extra ``train`` is missing, the models do not fit each
            other, or the checkpoint belongs to another training.
        CalibrationError: the data are empty, do not fit a model, or give values that are not finite.
    """
    recipe = recipe_of(settings)
    task = setup_of(unwrap(original), unwrap(pruned), data, held_out, recipe, edits, kind)
    folder, cache = (None if path is None else Path(path) for path in (checkpoint, cache_folder))
    return _trained(task, recipe.mixed_precision, folder, cache_bytes, cache, progress)


def _trained(
    task: DistillationSetup,
    mixed_precision: str,
    checkpoint: Path | None,
    cache_bytes: int,
    cache_folder: Path | None,
    progress: bool | None,
) -> Distillation:
    """Train from the start or from a checkpoint, and write the best weights into the pruned model."""
    with accelerating(task.device, mixed_precision) as tools:
        snapshots = None if checkpoint is None else Snapshots(checkpoint, task.key(), weights_of(task.pruned))
        found = None if snapshots is None else snapshots.load()
        trainer = task.trainer(tools, found, cache_bytes, cache_folder)
        course = TrainingState() if found is None else trainer.resume(found)
        since = [] if found is None else [f"went on from step {len(course.losses):,}, from {checkpoint}"]
        if snapshots is not None and found is None:
            snapshots.begin({name: parameter.detach() for name, parameter in named_parameters(task.pruned)})
        try:
            with progress_bar("distilling", progress) as told:
                trainer.run(course, lambda: None if snapshots is None else trainer.save(snapshots, course), told)
        except KeyboardInterrupt:
            _hand_over(trainer, course, task.pruned, snapshots)
            raise
    _hand_over(trainer, course, task.pruned, snapshots)
    return _report(trainer, course, [*task.notes, *since])


@locked
def _hand_over(trainer: Trainer, course: TrainingState, pruned: nn.Module, snapshots: Snapshots | None) -> None:
    """Write the best weights so far into the pruned model, all or none."""
    if not course.best:
        return
    trainer.student.load(course.best)
    values = trainer.student.values()
    if snapshots is not None:
        held = {name: values.get(name, parameter) for name, parameter in named_parameters(pruned)}
        snapshots.allow(digest(held.items()))
    write(pruned, values)


def _report(trainer: Trainer, course: TrainingState, notes: Sequence[str]) -> Distillation:
    repeated = len(trainer.teacher.repeated)
    more = list(notes)
    if repeated:
        more.append(
            f"what the original makes of {repeated} of {len(trainer.batches)} batches did not fit into cache_bytes: it "
            "ran again each time; raise cache_bytes=, or name a cache_folder="
        )
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in trainer.student.trained.values()):
        more.append("weights of 16 bits were trained as they are, and small steps round away: train a float32 copy")
    return Distillation(
        num_steps=len(course.losses),
        num_planned=trainer.num_steps,
        seconds=course.seconds,
        losses=tuple(course.losses),
        looks=tuple(course.looks),
        unit=trainer.harm.unit,
        best_step=course.best_step,
        stopped=course.stopped,
        num_trained=trainer.student.num_trained,
        hidden=tuple(name for match in trainer.matches for name in match.names),
        notes=tuple(more),
    )
