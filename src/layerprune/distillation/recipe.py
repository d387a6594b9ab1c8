"""The recipe of a training: a plain record, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from layerprune.errors import DistillationError

_MANY_CLASSES = 4096
_TOP_K = 256


class Recipe(BaseModel):
    """The settings of a distillation. Equal recipes train alike.

    Attributes:
        num_epochs: passes over the data.
        learning_rate: peak of AdamW's rate, which rises linearly over the first tenth of the steps, then falls to 0
            along a half cosine.
        weight_decay: of AdamW.
        max_norm: upper bound of the gradient norm over all parameters; larger gradients are scaled down.
        temperature: divisor of the logits of both models before they are compared.
        top_k: number of most likely tokens of a language model that are compared one by one; the others are taken
            together. None for all of up to 4,096, else 256.
        output_weight: weight of the output's loss: KL divergence for logits; for other outputs squared distance
            relative to the original's square, plus the mean of 1 - cosine along the last dimension.
        hidden_weight: weight of the mean loss of the hidden states: the squared distance of tensors that transforms
            feed, relative to the original's square. 0 for none.
        hidden: patterns of transforms' names in the pruned model (``fnmatch``), with the weights of the tensors that
            these transforms feed; other tensors get no loss. None for all outputs of merges, with equal weights.
        lora_rank: rank of adapters (peft) that are trained in place of the weights, and added to them at the end; 0 to
            train the weights themselves.
        mixed_precision: dtype of forwards: ``no`` (the parameters' own), ``bf16`` or ``fp16``.
        num_evaluations: number of evaluations on held-out data, evenly spread; the best weights are kept.
        patience: evaluations without a gain after which training stops.
        seed: for the order of the batches, the adapters' first values, and random numbers in forwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_epochs: int = Field(3, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_norm: float = Field(1.0, gt=0)
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, ge=1)
    output_weight: float = Field(1.0, ge=0)
    hidden_weight: float = Field(1.0, ge=0)
    hidden: Mapping[str, NonNegativeFloat] | None = None
    lora_rank: int = Field(0, ge=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    num_evaluations: int = Field(10, ge=1)
    patience: int = Field(5, ge=1)
    seed: int = Field(0, ge=0)

    def rate(self, step: int, num_steps: int) -> float:
        """Learning rate of a step; the first step is 0."""
        warm_up = max(1, round(num_steps / 10))
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))

    def num_compared(self, num_classes: int) -> int:
        """Number of a language model's tokens that are compared one by one."""
        if self.top_k is not None:
            return min(self.top_k, num_classes)
        return num_classes if num_classes <= _MANY_CLASSES else _TOP_K


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """Check settings.

    Raises:
        DistillationError: a setting has an unknown name, or a value out of its range.
    """
    try:
        recipe = Recipe(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise DistillationError(
                f"there is no setting '{name}'; there are {', '.join(Recipe.model_fields)}"
            ) from error
        raise DistillationError(f"{name}={first['input']!r} is no good: {first['msg']}") from error
    if recipe.output_weight == recipe.hidden_weight == 0:
        raise DistillationError("output_weight and hidden_weight are both 0: there is nothing to learn from")
    return recipe
