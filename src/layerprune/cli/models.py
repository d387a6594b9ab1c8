"""The MODEL and DATA arguments of a command: a model, its pruner, and the origin of the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from layerprune.cli.options import Granularity, Kind, parsed_shape

if TYPE_CHECKING:
    from torch import nn

    from layerprune.pruner import UniversalLayerPruner


def pruner_of(
    model: str,
    granularity: Granularity,
    protect: Iterable[str] | None,
    protect_io: bool,
    input_shape: str | None,
    pretrained: bool,
    calibration: str | None,
    kind: Kind | None,
) -> UniversalLayerPruner:
    """Build and capture the model; random inputs are the same in every run."""
    example_inputs = None if input_shape is None else parsed_shape(input_shape)
    import torch

    from layerprune.cli.sources import load_data
    from layerprune.pruner import UniversalLayerPruner

    return UniversalLayerPruner(
        model_of(model, pretrained),
        calibration=None if calibration is None else load_data(calibration),
        example_inputs=None if example_inputs is None else torch.randn(example_inputs),
        protect=tuple(protect or ()),
        granularity=granularity,
        protect_io=protect_io,
        kind=kind,
    )


def model_of(model: str, pretrained: bool) -> nn.Module:
    """Build the model; random weights are the same in every run."""
    import torch

    from layerprune.cli.sources import load_model

    torch.manual_seed(0)
    return load_model(model, pretrained=pretrained)


def origin_of(model: str) -> str | None:
    """Folder or hub name of a transformers model; None for other models."""
    return model.removeprefix("hf:") if model.startswith("hf:") else None
