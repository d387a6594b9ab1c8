"""Runs the training loop under accelerate, and restores accelerate's process state afterwards."""

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
    """Mixed precision, loss scaling, and the prepared optimizer, by an ``accelerate.Accelerator``."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        return self.accelerator.prepare(optimizer)

    def autocast(self) -> AbstractContextManager[None]:
        return self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> bool:
        """Clip gradients to ``max_norm``; False where they are not finite and no scaler would skip the step."""
        norm = self.accelerator.clip_grad_norm_(list(parameters), max_norm)
        return self.accelerator.scaler is not None or bool(torch.as_tensor(norm).isfinite())

    @property
    def scaler(self) -> dict[str, Any]:
        return {} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()

    @scaler.setter
    def scaler(self, state: dict[str, Any]) -> None:
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)


@contextmanager
def accelerating(device: torch.device, mixed_precision: str) -> Generator[Accelerating]:
    """Yield accelerate's tools for a device, to one thread at a time.

    accelerate keeps one state per process. A state that the user's own code made is put aside and restored.

    Raises:
        DistillationError: accelerate is not installed, or the device does not support the precision.
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
