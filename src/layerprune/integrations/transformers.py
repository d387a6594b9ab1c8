"""A callback of transformers' Trainer that prunes a model while it is trained."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast
from weakref import ref

from torch import nn
from torch.optim import Optimizer

from layerprune.checkpoint import allow_marked_saving, holds_artefact, load_weights
from layerprune.environment import how_to_install
from layerprune.errors import IntegrationError
from layerprune.integrations.call_recorder import CallRecorder
from layerprune.integrations.optimizer import check_optimizer
from layerprune.integrations.schedule import Schedule
from layerprune.integrations.training import PruningRecord, ScheduledPruning, check_unwrapped, warn_of
from layerprune.modules import check_supported, unwrap

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.utils.generic import find_labels
except ImportError as error:
    command = how_to_install("transformers", "accelerate")
    raise ImportError(f"this callback needs transformers; run: {command}") from error

#: Name of the callback's state in ``trainer_state.json``.
STATE = "layerprune.PruningCallback"

_NOT_INPUTS = ("labels", "num_items_in_batch", "return_loss")


class PruningCallback(TrainerCallback):
    """Prunes the model of a Trainer in place on a schedule, and lets optimizer and checkpoints follow.

    Rounds take place after an optimizer step or at the end of an epoch. ``attach`` gives the callback to a trainer, so
    that figures go through ``trainer.log``, and ``trainer.train(resume_from_checkpoint=…)`` prunes the model as the
    checkpoint's was, and loads its weights. Of a callback given by ``callbacks=`` figures are in
    ``trainer.state.log_history`` only, and checkpoints written after a round cannot be resumed.

    Args:
        schedule: when, and how much.
        calibration: batches for the model's forward; if None, the inputs of its last forwards in training, without
            labels.
        num_batches: number of forwards whose inputs are kept for that.
        repair: as for ``UniversalLayerPruner.prune``.
        **options: as for :class:`~layerprune.UniversalLayerPruner`, and ``strategy`` and ``slack`` of its ``plan``.

    Raises:
        IntegrationError: when training begins, with several devices, a compiled model, ``load_best_model_at_end``, or
            an optimizer that cannot be rebuilt.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        calibration: Iterable[Any] | None = None,
        num_batches: int = 8,
        repair: str | None = "auto",
        **options: Any,
    ) -> None:
        self._pruning = ScheduledPruning(schedule, calibration=calibration, repair=repair, **options)
        self._num_batches = num_batches
        self._recorder: CallRecorder | None = None
        self._trainer: ref[Trainer] | None = None

    @property
    def records(self) -> list[PruningRecord]:
        """A record for each round that took place."""
        return self._pruning.records

    def attach(self, trainer: Trainer) -> PruningCallback:
        """Add the callback to a trainer, with its log and its way to resume from a checkpoint."""
        own = cast("Any", trainer)._load_from_checkpoint

        def load_from_checkpoint(resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
            if not self._load(Path(resume_from_checkpoint), unwrap(cast("Any", trainer).model)):
                own(resume_from_checkpoint, model)

        cast("Any", trainer)._load_from_checkpoint = load_from_checkpoint
        self._trainer = ref(trainer)
        trainer.add_callback(self)
        return self

    def _load(self, folder: Path, model: nn.Module) -> bool:
        """Prune a model as a checkpoint's was; returns whether its weights were loaded, too."""
        state = _state_in(folder)
        if state is not None:
            self._pruning.restore(state, model)
            allow_marked_saving(model)
        if not holds_artefact(folder):
            return False
        load_weights(folder, model)
        return True

    # ---- begin and end -------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what cannot be right, before the first step."""
        model, optimizer = cast("nn.Module", kwargs["model"]), cast("Optimizer", kwargs["optimizer"])
        _check_arguments(args)
        check_unwrapped(model)
        check_supported(model)
        check_optimizer(optimizer, model)
        saved = cast("dict[str, Any]", state.stateful_callbacks).get(STATE)
        if saved is not None and self._pruning.state_of(model)["plans"] != saved["plans"]:
            raise IntegrationError(
                f"the checkpoint was written after {len(saved['records'])} rounds of pruning, and the model is not "
                "pruned so: call callback.attach(trainer) before trainer.train(resume_from_checkpoint=…)"
            )
        if not self._pruning.has_data and not self._pruning.is_over:
            labels = {*_NOT_INPUTS, *find_labels(type(model))}
            self._recorder = CallRecorder(unwrap(model), self._num_batches, labels)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop_recording()

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    # ---- rounds --------------------------------------------------------------------------------------------------

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prune after an optimizer step; batches whose gradients are only added up are no steps."""
        if self._pruning.schedule.unit == "step":
            self._prune(state.global_step, state, kwargs["model"], kwargs["optimizer"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._pruning.schedule.unit == "epoch":
            self._prune(round(state.epoch or 0.0), state, kwargs["model"], kwargs["optimizer"])

    def _prune(self, time: int, state: TrainerState, model: nn.Module, optimizer: Optimizer) -> None:
        if self._pruning.schedule.due(time, self._pruning.num_done) is None:
            return
        recorder = self._recorder
        with _plain_forward(model), nullcontext() if recorder is None else recorder.paused():
            record = self._pruning.step(time, model, optimizer, None if recorder is None else recorder.calls)
        if record is None:
            return
        allow_marked_saving(model)
        cast("dict[str, Any]", state.stateful_callbacks)[STATE] = self._pruning.state_of(model)
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None:
            trainer.log(record.figures())
        else:
            state.log_history.append({**record.figures(), "step": state.global_step})
        warn_of(record)
        if self._pruning.is_over:
            self._stop_recording()


def _check_arguments(args: TrainingArguments) -> None:
    said = cast("Any", args)
    if said.world_size > 1 or said.n_gpu > 1:
        raise IntegrationError(
            f"pruning in training runs on one device, and this trainer has {max(said.world_size, said.n_gpu)}: "
            "wrappers for several keep lists of the unpruned parameters; run it on one, or prune before training"
        )
    for name, what in {"deepspeed": "DeepSpeed", "fsdp": "FSDP", "torch_compile": "torch.compile"}.items():
        if getattr(said, name, None):
            raise IntegrationError(f"{name}= gives the model to {what}, which keeps what leaves: prune before training")
    if said.load_best_model_at_end:
        raise IntegrationError(
            "load_best_model_at_end=True would load a checkpoint of one round into a model of another: turn it off, "
            "and load the best checkpoint with layerprune.load_pruned"
        )


def _state_in(folder: Path) -> Mapping[str, Any] | None:
    """The callback's state in a checkpoint; None where no round took place before it."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return None
    state = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    return cast("Mapping[str, Any] | None", state.get("stateful_callbacks", {}).get(STATE))


@contextmanager
def _plain_forward(model: nn.Module) -> Generator[None]:
    """Take accelerate's mixed precision away from a model's forward, which is no part of the model."""
    held = vars(model)
    names = ("forward", "_original_forward") if "_original_forward" in held else ()
    wrapped = {name: held.pop(name) for name in names}
    try:
        yield
    finally:
        held.update(wrapped)
