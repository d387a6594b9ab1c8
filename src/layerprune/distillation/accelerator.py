"""Runs the training loop under accelerate, and restores accelerate's process state in the end."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.environment import extra
from layerprune.errors import DistillationError

_ONE_AT_A_TIME = threading.RLock()


class Accelerating:
    """Mixed precision, scaled gradients, and the optimizer that knows of both.

    Args:
        accelerator: accelerate's.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """Prepare an optimizer."""
        return self.accelerator.prepare(optimizer)

    def autocast(self) -> AbstractContextManager[None]:
        """What a forward runs in."""
        return self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Run a backward."""
        self.accelerator.backward(loss)

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> bool:
        """Scale gradients down to a norm, and say whether they may be used; a scaler skips those that overflow."""
        norm = self.accelerator.clip_grad_norm_(list(parameters), max_norm)
        return self.accelerator.scaler is not None or bool(torch.as_tensor(norm).isfinite())

    @property
    def scaler(self) -> dict[str, Any]:
        """The state of what scales gradients, as JSON can hold it; empty where nothing does."""
        return {} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()

    @scaler.setter
    def scaler(self, state: dict[str, Any]) -> None:
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)


@contextmanager
def accelerating(device: torch.device, mixed_precision: str) -> Generator[Accelerating]:
    """Hand out accelerate's tools for a device, to one thread at a time.

    accelerate keeps one state for a process. One that the user's own code has made is put aside meanwhile.

    Raises:
        DistillationError: accelerate is not installed, or cannot compute so on this device.
    """
    accelerate = extra("accelerate")
    state = extra("accelerate.state")
    with _ONE_AT_A_TIME:
        shared = [cls._shared_state for cls in (state.AcceleratorState, state.PartialState, state.GradientState)]
        before = [dict(held) for held in shared]
        for held in shared:
            held.clear()
        try:
            try:
                accelerator = accelerate.Accelerator(
                    cpu=device.type == "cpu", device_placement=False, mixed_precision=mixed_precision
                )
            except (ValueError, RuntimeError, ImportError) as error:
                raise DistillationError(f"mixed_precision='{mixed_precision}' on {device}: {error}") from error
            if mixed_precision != "no" and not accelerator.native_amp:
                raise DistillationError(f"mixed_precision='{mixed_precision}': accelerate has none on {device}")
            if accelerator.num_processes > 1:
                raise DistillationError(
                    f"distillation runs in one process, and there are {accelerator.num_processes}: "
                    "start it without a launcher"
                )
            yield Accelerating(accelerator)
        finally:
            for held, old in zip(shared, before, strict=True):
                held.clear()
                held.update(old)
