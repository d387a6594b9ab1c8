"""What a benchmark gets: a trained model, data that fit it, and the measure of how good it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

#: What a model's forward takes: one tensor, or tensors by keyword.
Inputs: TypeAlias = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A trained model with real data.

    ``model`` is in eval mode, in float32, on the CPU. ``kind`` says what it answers: ``"distribution"`` means logits,
    whose softmax is what counts, ``"values"`` means numbers that count as they are. Targets run parallel to the
    inputs: labels of images, the next tokens of a text, the original's own embeddings of sentences. ``report`` holds
    what the making of it measured: ``seconds``, and scores of simpler models to compare with.
    """

    name: str
    kind: Literal["values", "distribution"]
    model: nn.Module
    calibration: list[Inputs]
    calibration_targets: list[Tensor]
    held_out: list[Inputs]
    held_out_targets: list[Tensor]
    metric: str
    higher_is_better: bool
    measure: Callable[[Any, Inputs, Tensor], Tensor]
    """Score each image, token or sentence of a batch, from the model's output, its inputs and the targets."""
    report: Mapping[str, float]

    @torch.inference_mode()
    def score(self, model: nn.Module, batches: Sequence[Inputs] | None = None) -> float:
        """Return the mean of the metric over all images, tokens or sentences.

        Args:
            model: this subject's model, or what has become of it; in eval mode, on any device.
            batches: items of ``held_out`` or of ``calibration``, the very objects; all of ``held_out`` if not given.

        Raises:
            ValueError: a batch is none of this subject's, so that its targets are unknown.
        """
        batches = self.held_out if batches is None else batches
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        values = []
        for batch in batches:
            inputs, target = moved(batch, device), self.target_of(batch).to(device)
            output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
            values.append(self.measure(output, inputs, target).double().flatten())
        return torch.cat(values).mean().item()

    def target_of(self, batch: Inputs) -> Tensor:
        """Return the target that belongs to an item of ``held_out`` or of ``calibration``."""
        known = zip(
            [*self.held_out, *self.calibration], [*self.held_out_targets, *self.calibration_targets], strict=True
        )
        for inputs, target in known:
            if inputs is batch:
                return target
        raise ValueError(f"{self.name}: a batch is no item of held_out or calibration; pass those objects themselves")


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    if isinstance(inputs, dict):
        return {name: tensor.to(device) for name, tensor in inputs.items()}
    return inputs.to(device)
