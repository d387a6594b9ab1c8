"""Trains a pruned model to reproduce the original's outputs, and hands it the best weights seen."""

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
    """Train a pruned model to do what the original does, on any inputs: no labels are needed.

    A copy is trained with AdamW, on the output (KL divergence of logits, else distance and angle) and on the hidden
    states that surviving layers read, against what they read in the original. The weights that did best on held-out
    data are written into the pruned model at the very end, all or none; where none did better, it stays as it is. That
    holds as well where the loss diverges. ``KeyboardInterrupt`` is passed on, after the best weights so far were
    written: a second one meanwhile leaves those from before.

    The copies run in eval mode: nothing is dropped out, batch norms keep their statistics. Parameters that do not ask
    for gradients stay as they are. The original is never written into; modes, flags, hooks, buffers and the RNG of both
    stay as they were. The same call gives the same weights, on the same machine and number of threads.

    Args:
        original: the model before pruning.
        pruned: what is left of it, best after :func:`repair`.
        data: batches, each as the forward takes it, which are read once and kept; short sequences of about one length
            in a batch are fast. Tokens that ``attention_mask`` leaves out count nowhere.
        held_out: batches that the best weights are chosen on; every eighth batch of ``data`` if None.
        edits: ``plan.edits``; needed where whole layers have left their container and the others are renumbered. Those
            of the plan that ``pruned`` was made by in this process if None; a copy has forgotten them.
        kind: ``distribution`` where the output are logits, ``values`` where numbers count as they are; told from the
            model and its output if None.
        cache_bytes: what the original makes of the batches is computed once, and kept in memory up to this size.
        cache_folder: where the rest of it is kept, as safetensors, also for later runs; None to run the original again
            each time, and then the report says for how many batches.
        checkpoint: a folder of its own, for safetensors and JSON, written after each look at the held-out data. The
            same call goes on from there, to the very weights that it would have come to without a break.
        progress: whether to show a bar; None for where standard error is a terminal.
        **settings: of the :class:`Recipe`, as ``num_epochs=3``, ``learning_rate=3e-4``,
            ``temperature=1.0``, ``hidden_weight=1.0``, ``lora_rank=0``, ``mixed_precision="no"``, ``seed=0``.

    Returns:
        What was done, what it won, and why it stopped.

    Raises:
        DistillationError: a setting is no good, a package of the extra ``train`` is missing, the models do not fit each
            other, or the checkpoint belongs to another training.
        CalibrationError: the data are empty, do not fit either model, or make values that are not finite.
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
    """Train from the start or from a checkpoint, and write what was best into the pruned model."""
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
        len(course.losses),
        trainer.num_steps,
        course.seconds,
        tuple(course.losses),
        tuple(course.looks),
        trainer.harm.unit,
        course.best_step,
        course.stopped,
        trainer.student.num_trained,
        tuple(name for match in trainer.matches for name in match.names),
        tuple(more),
    )
