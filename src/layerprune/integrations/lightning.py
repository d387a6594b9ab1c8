"""A callback of Lightning that prunes a module while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from layerprune.environment import how_to_install
from layerprune.errors import IntegrationError
from layerprune.integrations.call_recorder import CallRecorder
from layerprune.integrations.optimizer import check_optimizer, trains
from layerprune.integrations.schedule import Schedule
from layerprune.integrations.training import PruningRecord, ScheduledPruning, warn_of
from layerprune.modules import check_supported, unwrap

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import nn

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
except ImportError as error:
    raise ImportError(f"this callback needs lightning; run: {how_to_install('lightning')}") from error

#: Callbacks that hold a copy of the module from the beginning on.
_AVERAGES = (StochasticWeightAveraging, WeightAveraging)


class PruningCallback(Callback):
    """Prunes a Lightning module in place on a schedule, and lets its optimizers and checkpoints follow.

    Rounds take place after an optimizer step or at the end of a training epoch. Figures are logged as
    ``pruning/num_params``, ``pruning/macs``, ``pruning/impact`` and ``pruning/round``. A checkpoint holds the plan, as
    JSON text: ``trainer.fit(module, ckpt_path=…)`` and ``trainer.test(module, ckpt_path=…)`` with a module made as it
    was before training prune it first, and load the weights into what is left.

    Args:
        schedule: when, and how much; steps are those of ``trainer.global_step``.
        module: dotted name of the part to prune, as ``"net"``; the whole module if empty.
        calibration: batches for the part's forward; if None, the inputs of its last forwards in training.
        num_batches: number of forwards whose inputs are kept for that.
        repair: as for ``UniversalLayerPruner.prune``.
        **options: as for :class:`~layerprune.UniversalLayerPruner`, and ``strategy`` and ``slack`` of its ``plan``.

    Attributes:
        records: a :class:`PruningRecord` for each round that took place.

    Raises:
        IntegrationError: when training begins, with several devices, weight averaging, or an optimizer that cannot be
            rebuilt.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        module: str = "",
        calibration: Iterable[Any] | None = None,
        num_batches: int = 8,
        repair: str | None = "auto",
        **options: Any,
    ) -> None:
        self._name, self._num_batches = module, num_batches
        self._pruning = ScheduledPruning(schedule, calibration=calibration, repair=repair, **options)
        self._recorder: CallRecorder | None = None
        self._step = 0
        self._part: nn.Module | None = None

    @property
    def records(self) -> list[PruningRecord]:
        """A record for each round that took place."""
        return self._pruning.records

    # ---- begin and end -------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be right, and prune the module before the weights of a checkpoint are loaded."""
        if trainer.world_size > 1:
            raise IntegrationError(
                f"pruning in training runs on one device, and this trainer has {trainer.world_size}: wrappers for "
                "several keep lists of the unpruned parameters; give devices=1, or prune before trainer.fit"
            )
        self._part = self._part_of(pl_module)
        averaging = [type(one).__name__ for one in _callbacks(trainer) if isinstance(one, _AVERAGES)]
        if stage == "fit" and averaging:
            raise IntegrationError(
                f"{averaging[0]} keeps a copy of the unpruned module: prune before trainer.fit, or average afterwards"
            )
        self._restore_first(pl_module)

    def _part_of(self, pl_module: LightningModule) -> nn.Module:
        try:
            part = pl_module.get_submodule(self._name)
        except AttributeError as error:
            raise IntegrationError(
                f"{type(pl_module).__name__} has no module '{self._name}': give module=, the name of the part to prune"
            ) from error
        if unwrap(part) is not part:
            raise IntegrationError(
                f"'{self._name}' is compiled or wrapped: prune before it is, or give its inner module"
            )
        check_supported(part)
        return part

    def _restore_first(self, pl_module: LightningModule) -> None:
        """Let the module prune itself by the plan of a checkpoint, which Lightning hands it before the weights."""
        own = cast("Callable[[dict[str, Any]], None]", pl_module.on_load_checkpoint)

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            vars(pl_module).pop("on_load_checkpoint", None)
            self._restore(checkpoint, pl_module)
            own(checkpoint)

        vars(pl_module)["on_load_checkpoint"] = on_load_checkpoint

    def _restore(self, checkpoint: Mapping[str, Any], pl_module: LightningModule) -> None:
        state = cast("Mapping[str, Any]", checkpoint.get("callbacks", {})).get(self.state_key)
        if state:
            self._pruning.restore(state, pl_module.get_submodule(self._name))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(pl_module).pop("on_load_checkpoint", None)
        part = self._part_of(pl_module)
        if trainer.strategy.model is not pl_module:
            raise IntegrationError(
                f"{type(trainer.strategy).__name__} wraps the module, and keeps lists of the unpruned parameters: give "
                "strategy='auto' on one device, or prune before trainer.fit"
            )
        for optimizer in trainer.optimizers:
            if trains(optimizer, part):
                check_optimizer(optimizer, part)
        self._step = trainer.global_step
        if not self._pruning.has_data and not self._pruning.is_over:
            self._recorder = CallRecorder(part, self._num_batches)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(pl_module).pop("on_load_checkpoint", None)
        self._stop_recording()

    # ---- rounds --------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prune after an optimizer step; batches whose gradients are only added up are no steps."""
        if self._pruning.schedule.unit == "step" and trainer.global_step != self._step:
            self._step = trainer.global_step
            self._prune(trainer, pl_module, self._step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pruning.schedule.unit == "epoch":
            self._prune(trainer, pl_module, trainer.current_epoch + 1)

    def _prune(self, trainer: Trainer, pl_module: LightningModule, time: int) -> None:
        if self._pruning.schedule.due(time, self._pruning.num_done) is None:
            return
        part, recorder = pl_module.get_submodule(self._name), self._recorder
        optimizers = [optimizer for optimizer in trainer.optimizers if trains(optimizer, part)]
        with _apart(pl_module, trainer), nullcontext() if recorder is None else recorder.paused():
            calls = None if recorder is None else recorder.calls
            record = self._pruning.step(time, part, optimizers, calls)
        if record is not None:
            warn_of(record)
            pl_module.log_dict(record.figures(), on_step=False, on_epoch=True, batch_size=1)
        if self._pruning.is_over:
            self._stop_recording()

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The rounds so far and the plans, as plain values and JSON text."""
        part = self._part
        return {} if part is None else self._pruning.state_of(part)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the state was taken over before the weights were loaded."""


def load_checkpoint(path: str, module: LightningModule, *, part: str = "") -> LightningModule:
    """Prune a fresh Lightning module in place as a checkpoint's was, and load its weights.

    Args:
        path: a checkpoint that a trainer with a :class:`PruningCallback` has written.
        module: the module, made as it was before training.
        part: the callback's ``module``.

    Returns:
        The module, pruned.

    Raises:
        IntegrationError: the checkpoint has no state of the callback.
    """
    import torch

    checkpoint = cast("dict[str, Any]", torch.load(path, map_location="cpu", weights_only=True))
    states = [
        state
        for key, state in cast("dict[str, Any]", checkpoint.get("callbacks", {})).items()
        if key.startswith(PruningCallback.__qualname__)
    ]
    if not states:
        raise IntegrationError(f"{path} holds no state of a {PruningCallback.__name__}: load it as any checkpoint")
    ScheduledPruning(Schedule(start=1, share=0.5)).restore(states[0], module.get_submodule(part))
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module


def _callbacks(trainer: Trainer) -> list[Any]:
    return list(cast("Any", trainer).callbacks)


@contextmanager
def _apart(pl_module: LightningModule, trainer: Trainer) -> Generator[None]:
    """Take the trainer away from a module, so that copies of the module do not copy it."""
    cast("Any", pl_module).trainer = None
    try:
        yield
    finally:
        pl_module.trainer = trainer
