"""The recipe of a training: a plain record that is checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from layerprune.errors import DistillationError

_MANY_CLASSES = 4096
_TOP_K = 256


class Recipe(BaseModel):
    """How a pruned model is trained to do what the original does. Two recipes that are equal train alike.

    Attributes:
        num_epochs: passes over the data.
        learning_rate: of AdamW, at its peak: it rises linearly for the first tenth of the steps and falls to 0 along a
            half cosine.
        weight_decay: of AdamW, towards 0.
        max_norm: gradients whose norm over all parameters is larger are scaled down to it.
        temperature: what logits are divided by before the original's distribution and the pruned model's are compared.
        top_k: how many of the most likely tokens of a language model are compared one by one, the others being taken
            together; None for all of up to 4,096, else 256.
        output_weight: of the output's loss. Of logits that is the KL divergence; of other outputs the squared distance
            relative to the original's, and the mean of 1 - cosine along the last dimension.
        hidden_weight: of the mean of the hidden states' losses: the squared distance of what transforms feed from what
            it was in the original, relative to it. 0 for none.
        hidden: patterns of transforms' names in the pruned model (``fnmatch``), with the weight that the tensors get
            which these feed; others get none. None for all that lie where the layers' ways meet, with equal weights.
        lora_rank: train two thin matrices of this rank beside each transform (peft), which are added to its weights in
            the end, and nothing else; 0 to train the weights themselves.
        mixed_precision: what forwards compute in: ``no`` (the parameters' own type), ``bf16`` or ``fp16``.
        num_evaluations: how many times the held-out data are looked at, evenly spread; the best weights are kept.
        patience: evaluations without a gain after which training stops.
        seed: for the order of the batches, the adapters' first values, and what forwards draw.
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
        """The learning rate of a step, the first being 0."""
        warm_up = max(1, round(num_steps / 10))
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))

    def num_compared(self, num_classes: int) -> int:
        """How many of a language model's tokens are compared one by one."""
        if self.top_k is not None:
            return min(self.top_k, num_classes)
        return num_classes if num_classes <= _MANY_CLASSES else _TOP_K


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """Check settings.

    Raises:
        DistillationError: there is no setting of that name, or a value is out of its range.
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
