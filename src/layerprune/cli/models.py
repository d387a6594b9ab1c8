"""The MODEL and DATA arguments of a command: a model, its data and its pruner."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprune.cli.options import BatchOptions, CalibrationOptions, PrunerOptions, SourceOptions, parsed_shape

if TYPE_CHECKING:
    from torch import nn

    from layerprune.pruner import UniversalLayerPruner
    from layerprune.sources import DataSettings


def pruner_of(
    spec: str, source: SourceOptions, options: PrunerOptions, data: CalibrationOptions
) -> UniversalLayerPruner:
    """Build and capture the model; random inputs are the same in every run."""
    import torch

    from layerprune.pruner import UniversalLayerPruner

    model, shape = model_of(spec, source), parsed_shape(options.input_shape)
    device = next((parameter.device for parameter in model.parameters()), None)
    return UniversalLayerPruner(
        model,
        calibration=None if data.calibration is None else data_of(data.calibration, spec, model, data),
        example_inputs=None if shape is None else torch.randn(shape).to(device),
        protect=tuple(options.protect or ()),
        protect_io=options.protect_io,
        granularity=options.granularity,
        projections=options.projections,
        renumber=options.renumber,
        criterion=options.criterion,
        kind=options.kind,
        seed=options.seed,
    )


def model_of(spec: str, source: SourceOptions) -> nn.Module:
    """Build the model; random weights are the same in every run."""
    import torch

    from layerprune.environment import progress_bar
    from layerprune.errors import SourceError
    from layerprune.sources import load_model

    torch.manual_seed(0)
    with progress_bar(f"loading {spec}"):
        model = load_model(spec, pretrained=source.pretrained)
        if source.device is None:
            return model
        try:
            return model.to(source.device)
        except Exception as error:  # torch raises errors of many types
            raise SourceError(f"device '{source.device}' cannot be used: {error}") from error


def data_of(text: str, spec: str, model: nn.Module, options: BatchOptions) -> Iterable[Any]:
    """The batches of a DATA argument, for a model."""
    from layerprune.environment import progress_bar
    from layerprune.sources import load_data, source_of

    with progress_bar(f"reading {text}"):
        return load_data(text, model, source_of(spec), settings_of(options))


def settings_of(options: BatchOptions) -> DataSettings:
    """The options of batches as the sources take them."""
    from layerprune.sources import DataSettings

    return DataSettings(
        batch_size=options.batch_size, max_samples=options.samples, max_length=options.length, column=options.column
    )


def other_of(text: str, original: nn.Module, source: SourceOptions) -> nn.Module:
    """The model of a FOLDER that ``prune`` wrote of the original, or of another MODEL argument."""
    from layerprune.checkpoint import load_pruned

    if ":" not in text or Path(text).is_dir():
        return load_pruned(Path(text), model=original)
    return model_of(text, source)
