"""The runs of one of the two models on all batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture import ActivationStore, Batch, Sandbox, on_batch, real_sandbox
from layerprune.graph import LayerGraph
from layerprune.repair.stream.suspended_forward import SuspendedForward


@dataclass(eq=False, kw_only=True)
class ModelRun:
    """One of the two models that are compared.

    Attributes:
        model: the user's model; it does not change.
        shade: a real sandbox of it.
        graph: its layer graph.
        num_forwards: forwards so far, including those that ended early.
        recorded: the number of the batch that it was recorded on.
        held: tensors of that forward.
    """

    model: nn.Module
    shade: Sandbox
    graph: LayerGraph
    num_forwards: int = 0
    recorded: int = 0
    held: ActivationStore = field(default_factory=lambda: ActivationStore(0))

    def lane(
        self,
        batch: Batch,
        values: Iterable[int],
        shade: Sandbox | None = None,
        *,
        to_end: bool = False,
        passes: Callable[[int, Tensor], bool] | None = None,
    ) -> SuspendedForward:
        """A forward that stops at some values; on a new sandbox if None is given."""
        self.num_forwards += 1
        return SuspendedForward(
            shade or real_sandbox(self.model, written=self.graph.written_params),
            self.graph,
            frozenset(values),
            batch.inputs,
            to_end=to_end,
            passes=passes,
        )

    def known(self, number: int, values: Collection[int]) -> dict[int, Tensor]:
        """Value → its tensor in a batch, where known without another forward."""
        held = self.held.tensors if number == self.recorded else {}
        return {value: held[value] for value in values if value in held}

    def output(self, number: int) -> Any:
        """The model's output on a batch; None where it takes another forward."""
        return self.held.output if number == self.recorded else None

    @cached_property
    def overwritten(self) -> frozenset[int]:
        return frozenset(storage for layer in self.graph.layers for storage in layer.writes)

    def kept(self, value: int, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.clone() if self.graph.values[value].storage in self.overwritten else tensor

    def next(self, lane: SuspendedForward, number: int) -> tuple[int, Tensor] | None:
        """The next value of a suspended forward and its tensor; raises CalibrationError where the forward raises."""
        with on_batch(self.model, lane.inputs, f"batch {number} of the calibration data"):
            return lane.next()

    def finish(self, lane: SuspendedForward, number: int) -> None:
        """Run a suspended forward on to its end; raises CalibrationError where the forward raises."""
        with on_batch(self.model, lane.inputs, f"batch {number} of the calibration data"):
            lane.finish()

    def num_bytes(self, value: int) -> int:
        found = self.graph.values[value]
        return torch.Size(found.shape).numel() * found.dtype.itemsize

    @property
    def live_bytes(self) -> int:
        """The peak bytes of values that are still to be read, in the recorded forward."""
        last: dict[int, int] = {}
        size: dict[int, int] = {}
        made: dict[int, int] = {}
        for value in self.graph.values.values():
            if value.index not in self.graph.readers:
                continue  # inside a layer, or an output
            reader = max(self.graph.readers[value.index])
            last[value.storage] = max(last.get(value.storage, -1), reader)
            made[value.storage] = min(made.get(value.storage, value.layer), value.layer)
            size[value.storage] = max(size.get(value.storage, 0), self.num_bytes(value.index))
        steps = [0] * (len(self.graph.layers) + 3)
        for storage, num_bytes in size.items():
            steps[made[storage] + 1] += num_bytes
            steps[last[storage] + 2] -= num_bytes
        most = now = 0
        for step in steps:
            now += step
            most = max(most, now)
        return most
