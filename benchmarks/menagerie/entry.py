"""One architecture of the zoo: how to build it, and what to run it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

#: The arguments of one forward call.
Batch: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class NoVariant(Exception):
    """The model takes inputs of one size only; the message says why."""


@dataclass(frozen=True)
class Entry:
    """An architecture at two depths: planned on the meta device, and, where ``full`` is given, checked in full.

    Attributes:
        library: ``torchvision``, ``timm`` or ``transformers``.
        name: the architecture's name; for transformers the model type, or the class.
        family: torchvision: ``classification``, ``segmentation``, ``detection``, ``video``, ``optical_flow``; timm: the
            model file's name; transformers: the model type.
        plan: builds the model on the meta device; on the CPU where what it returns depends on values.
        plan_inputs: example inputs for plan depth; None where the library is to infer them, as is normal.
        full: builds a small model with random weights, float32 on the CPU; None for plan depth only.
        inputs: (model, batch size, variant) → arguments of the full model. Variant 0 is the usual size or length,
            variant 1 another one, or :class:`NoVariant` where the model has but one.
    """

    library: str
    name: str
    family: str
    plan: Callable[[], nn.Module]
    plan_inputs: Callable[[nn.Module], Any] | None = None
    full: Callable[[], nn.Module] | None = None
    inputs: Callable[[nn.Module, int, int], Batch] | None = None
