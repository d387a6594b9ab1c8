"""Prunes a model in place in the middle of its training, once or on a schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.optim import Optimizer

from layerprune.errors import IntegrationError, LayerPruneWarning, warn
from layerprune.integrations.optimizer import check_optimizer, rebuild_optimizer
from layerprune.integrations.schedule import Schedule
from layerprune.modules import clone, num_params
from layerprune.plan import PruningPlan, plans_of
from layerprune.pruner import UniversalLayerPruner

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_BUDGETS = (
    *("max_param_reduction", "max_mac_reduction", "target_latency_ms", "max_memory_bytes", "max_impact"),
    *("slack", "groups", "strategy", "unused"),
)


class PruningRecord(BaseModel):
    """What one round of pruning did to a model in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int = Field(description="number of the round, from 1 on")
    time: int = Field(description="the step or epoch after which it took place")
    num_params_before: int
    num_params_after: int
    macs_before: int | None = Field(default=None, description="of one forward; null where they were not counted")
    macs_after: int | None = None
    impact: float | None = Field(
        default=None, description="of all removals, measured where the plan did so, else their sum; null if not known"
    )
    removed: tuple[str, ...] = Field(default=(), description="names of the groups that left")
    shortfall: str = Field(default="", description="why nothing, or less than half of what was allowed, left")
    notes: tuple[str, ...] = Field(default=(), description="remarks on the optimizers' states")

    def figures(self, prefix: str = "pruning/") -> dict[str, float]:
        """The numbers, by name, for a logger."""
        found: dict[str, float | None] = {
            "round": self.round,
            "num_params": self.num_params_after,
            "macs": self.macs_after,
            "impact": self.impact,
        }
        return {f"{prefix}{name}": float(value) for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        size = f"{self.num_params_before:,} → {self.num_params_after:,} parameters"
        return f"round {self.round} after {self.time}: {size}; {', '.join(self.removed) or 'nothing'} left"


def prune_in_training(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] = (),
    *,
    calibration: Iterable[Any] | None = None,
    repair: str | None = "auto",
    number: int = 1,
    time: int = 0,
    **options: Any,
) -> PruningRecord:
    """Prune a model in place, and let its optimizers go on with what is left.

    Call it between two optimizer steps: after ``optimizer.step()`` and before the next forward. The model keeps its
    plan: after several rounds ``save_pruned(model, folder)`` saves one plan for all of them.

    Args:
        model: the model in training; it is pruned in place, in train or eval mode.
        optimizer: its optimizer, or several; each is rebuilt by :func:`rebuild_optimizer`.
        calibration: batches as for :class:`~layerprune.UniversalLayerPruner`; without them, give ``example_inputs=``.
        repair: as for ``UniversalLayerPruner.prune``.
        number: number of the round, for the record.
        time: the present step or epoch, for the record.
        **options: budgets as for ``UniversalLayerPruner.plan``, and all options of ``UniversalLayerPruner``.

    Returns:
        What was done. A :class:`~layerprune.errors.ShortfallWarning` tells why little was removed.

    Raises:
        IntegrationError: the model is wrapped for several devices, or an optimizer cannot be rebuilt. Nothing changed.
        LayerPruneError: the model cannot be pruned so. Nothing changed.
    """
    check_unwrapped(model)
    optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
    for one in optimizers:
        check_optimizer(one, model)
    asked = {name: options.pop(name) for name in _BUDGETS if name in options}
    pruner = UniversalLayerPruner(model, calibration=calibration, **options)
    plan = pruner.plan(**asked)
    saving = pruner.saving(plan)
    before = clone(model, lambda tensor: tensor)  # holds the parameters that the optimizers know
    pruner.prune(plan=plan, repair=repair, inplace=True)
    reports = [rebuild_optimizer(one, model, before) for one in optimizers] if plan.edits else []
    return PruningRecord(
        round=number,
        time=time,
        num_params_before=plan.num_params_before,
        num_params_after=plan.num_params_after,
        macs_before=saving.before.macs,
        macs_after=saving.after.macs,
        impact=_impact(plan),
        removed=tuple(name for removal in plan.removals for name in removal.groups),
        shortfall=plan.shortfall,
        notes=tuple(note for report in reports for note in report.notes),
    )


def _empty(number: int, time: int, num_params: int, why: str) -> PruningRecord:
    return PruningRecord(
        round=number, time=time, num_params_before=num_params, num_params_after=num_params, shortfall=why
    )


def _impact(plan: PruningPlan) -> float | None:
    if plan.impact_together is not None:
        return plan.impact_together
    alone = [removal.impact for removal in plan.removals]
    return None if None in alone else sum(cast("list[float]", alone))


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a model that is wrapped for several devices.

    Raises:
        IntegrationError: the wrapper keeps the parameters of the unpruned model.
    """
    if isinstance(model, _WRAPPERS):
        raise IntegrationError(
            f"the model is wrapped in {type(model).__name__}, which keeps lists of the unpruned parameters: prune "
            "wrapper.module on every process alike, and wrap what is left anew"
        )


class ScheduledPruning:
    """Prunes a model in training when its schedule says so; for training loops and the callbacks here.

    Args:
        schedule: when, and how much.
        calibration: batches; None where each call of :meth:`step` gives some, or ``example_inputs`` is an option.
        repair: as for :func:`prune_in_training`.
        **options: as for :func:`prune_in_training`, but budgets of parameters.

    Attributes:
        schedule: when, and how much.
        records: one for each round that took place.
        num_params: number of parameters before the first round; 0 until then.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        calibration: Iterable[Any] | None = None,
        repair: str | None = "auto",
        **options: Any,
    ) -> None:
        self.schedule = schedule
        self.records: list[PruningRecord] = []
        self.num_params = 0
        self._calibration, self._repair, self._options = calibration, repair, options

    @property
    def has_data(self) -> bool:
        """Whether calibration data or example inputs were given."""
        return self._calibration is not None or "example_inputs" in self._options

    @property
    def num_done(self) -> int:
        """Number of rounds that took place."""
        return len(self.records)

    @property
    def is_over(self) -> bool:
        """Whether no round is left."""
        return self.num_done >= self.schedule.num_rounds

    def step(
        self,
        time: int,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] = (),
        calibration: Iterable[Any] | None = None,
    ) -> PruningRecord | None:
        """Prune if a round is due.

        Args:
            time: the step or epoch that has just ended, from 1 on.
            model: the model, which is pruned in place.
            optimizer: its optimizers.
            calibration: batches for this round, in place of those of the schedule.

        Returns:
            What was done; None where no round was due.
        """
        number = self.schedule.due(time, self.num_done)
        if number is None:
            return None
        check_unwrapped(model)
        now = num_params(model)
        self.num_params = self.num_params or now
        cap = self.schedule.cap(number, self.num_params, now)
        if cap <= 0:
            full = f"{now:,} parameters are left, of which round {number} may remove none"
            self.records.append(_empty(number, time, now, full))
            return self.records[-1]
        data = self._calibration if calibration is None else calibration
        record = prune_in_training(
            model,
            optimizer,
            calibration=data,
            repair=self._repair,
            number=number,
            time=time,
            max_param_reduction=cap,
            **self._options,
        )
        self.records.append(record)
        return record

    # ---- state, as plain JSON ----------------------------------------------------------------------------------

    def state_of(self, model: nn.Module) -> dict[str, Any]:
        """The rounds so far, and the model's plans as JSON text, for a checkpoint."""
        return {
            "num_params": self.num_params,
            "records": [record.model_dump(mode="json") for record in self.records],
            "plans": [plan.to_json() for plan in plans_of(model)],
        }

    def restore(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Take over the state of a checkpoint, and prune a model in place as it was when the checkpoint was written.

        Raises:
            IntegrationError: the model was pruned in another way, or further.
        """
        replay(tuple(map(PruningPlan.from_json, state["plans"])), model)
        self.num_params = int(state["num_params"])
        self.records[:] = [PruningRecord.model_validate(record) for record in state["records"]]


def replay(plans: Sequence[PruningPlan], model: nn.Module) -> None:
    """Prune a model in place by the plans of a checkpoint, as far as it is not pruned by them.

    The weights that take in projections are zeros then, as the checkpoint's weights replace all weights.

    Raises:
        IntegrationError: the model was pruned in another way, or further.
    """
    wanted = [part for plan in plans for part in plan.parts]
    there = [part for plan in plans_of(model) for part in plan.parts]
    if wanted[: len(there)] != there:
        raise IntegrationError(
            f"the checkpoint holds a model after {len(wanted)} rounds of pruning, and this {type(model).__name__} was "
            f"pruned in another way ({len(there)} rounds): give a model made as it was before the first round"
        )
    for part in wanted[len(there) :]:
        part.apply(model, inplace=True, weights_follow=True)


def warn_of(record: PruningRecord) -> None:
    """Warn of what happened to the optimizers."""
    for note in record.notes:
        warn(note, LayerPruneWarning)
