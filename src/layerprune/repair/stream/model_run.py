"""The runs of one of the two models on all batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture import ActivationStore, Batch, Sandbox, real_sandbox
from layerprune.errors import CalibrationError, ended_by
from layerprune.graph import LayerGraph
from layerprune.repair.stream.suspended_forward import SuspendedForward


@dataclass(eq=False)
class ModelRun:
    """One of the two models that are held against each other.

    Attributes:
        model: the user's model; it is not touched.
        shade: a real shadow of it.
        graph: its layer graph.
        num_forwards: forwards so far, those cut short included.
        recorded: the number of the batch that it was recorded on.
        held: what that forward has shown.
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
        """A forward that stops at some values; on a shadow of its own if None is given."""
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
        """What is known of some values in a batch without another forward."""
        held = self.held.tensors if number == self.recorded else {}
        return {value: held[value] for value in values if value in held}

    def output(self, number: int) -> Any:
        """What the model returns of a batch, if that is known without another forward; else None."""
        return self.held.output if number == self.recorded else None

    @cached_property
    def overwritten(self) -> frozenset[int]:
        """The storages that some layer writes into."""
        return frozenset(storage for layer in self.graph.layers for storage in layer.writes)

    def kept(self, value: int, tensor: Tensor) -> Tensor:
        """A tensor that stays what it is, whatever later layers write into it."""
        tensor = tensor.detach()
        return tensor.clone() if self.graph.values[value].storage in self.overwritten else tensor

    def next(self, lane: SuspendedForward, number: int) -> tuple[int, Tensor] | None:
        """What a lane comes to next.

        Raises:
            CalibrationError: the forward raises.
        """
        with self._telling(number):
            return lane.next()

    def finish(self, lane: SuspendedForward, number: int) -> None:
        """Run a lane on to the end of the forward.

        Raises:
            CalibrationError: the forward raises.
        """
        with self._telling(number):
            lane.finish()

    @contextmanager
    def _telling(self, number: int) -> Generator[None]:
        try:
            yield
        except Exception as error:  # the user's own forward
            what = f"{type(self.model).__name__}.forward raised on batch {number} of the calibration data"
            raise CalibrationError(ended_by(what, error)) from error

    def num_bytes(self, value: int) -> int:
        """What a value of the recorded inputs takes."""
        found = self.graph.values[value]
        return torch.Size(found.shape).numel() * found.dtype.itemsize

    @property
    def live_bytes(self) -> int:
        """What a forward of the recorded inputs holds at most of values that are still to be read."""
        last: dict[int, int] = {}
        size: dict[int, int] = {}
        made: dict[int, int] = {}
        for value in self.graph.values.values():
            if value.index not in self.graph.readers:
                continue  # within a layer, or handed out
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
