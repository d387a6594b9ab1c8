"""Estimates the running statistics of batch norms again after a removal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.capture import on_batch, read_calibration, real_sandbox
from layerprune.environment import locked
from layerprune.errors import NotFiniteError
from layerprune.fitting import exact
from layerprune.modules import unwrap, write
from layerprune.torch_internals import BatchNorm


class _Moments:
    """The exact mean and variance of all values of each channel, batch by batch (Chan, Golub and LeVeque, 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.scatter = torch.zeros(())

    def add(self, tensor: Tensor) -> None:
        """Take in ``(sample, channel, …)``."""
        values = tensor.detach().transpose(0, 1).flatten(1).to(exact(tensor))
        count, mean = values.shape[1], values.mean(1)
        scatter = (values - mean[:, None]).square().sum(1)
        if self.count:
            total = self.count + count
            step = mean - self.mean
            scatter = self.scatter + scatter + step.square() * (self.count * count / total)
            mean = self.mean + step * (count / total)
        self.count, self.mean, self.scatter = self.count + count, mean, scatter


@locked
def reestimate(model: nn.Module, calibration: Iterable[Any]) -> tuple[str, ...]:
    """Set the running statistics of each batch norm to the mean and variance of its inputs over all data.

    Takes one forward per batch, in eval mode except for the batch norms, which normalize by their batch. Use it instead
    of a refit, or where no refit is possible: after a refit (:func:`repair`) the old statistics are right again. Batch
    norms without running statistics, frozen batch norms of other classes, and ``num_batches_tracked`` do not change.

    Args:
        model: the pruned model. Its running statistics are written at the end, all or none.
        calibration: batches of real inputs for the model's forward, each of two samples or more.

    Returns:
        The names of the batch norms that have new statistics.

    Raises:
        CalibrationError: the data are empty, do not fit the model, or give statistics that are not finite.
    """
    model = unwrap(model)
    batches = read_calibration(calibration, model)
    shade = real_sandbox(model)
    norms = {
        name: module
        for name, module in shade.model.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None and module.running_var is not None
    }
    moments = {name: _Moments() for name in norms}
    for name, module in norms.items():
        module.training = True  # not .train(), which would also switch on child modules such as dropout
        module.register_forward_pre_hook(lambda _, args, name=name: moments[name].add(args[0]))
    for number, batch in enumerate(batches if norms else ()):
        otherwise = "each batch has to be what the model's forward takes, with two samples or more"
        with on_batch(model, batch.inputs, f"batch {number} of the calibration data", otherwise=otherwise):
            shade.forward(batch.inputs)
        _check_finite(number, moments)
    seen = {name: found for name, found in moments.items() if found.count > 1}
    values = {f"{name}.running_mean": found.mean for name, found in seen.items()}
    values |= {f"{name}.running_var": found.scatter / (found.count - 1) for name, found in seen.items()}
    write(model, values)
    return tuple(seen)


def _check_finite(number: int, moments: Mapping[str, _Moments]) -> None:
    for name, found in moments.items():
        if not bool((found.mean + found.scatter).isfinite().all()):
            raise NotFiniteError(
                f"batch {number} of the calibration data makes '{name}' see values that are not finite: leave it out, "
                "or look for NaN in the data and in the weights"
            )
