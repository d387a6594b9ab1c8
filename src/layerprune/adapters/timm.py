"""timm: example inputs from the config of a model's pretrained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from layerprune.inputs import Inputs, Sampler, describe

_SIZE_KEYS = ("input_size", "test_input_size", "min_input_size")


def timm_example_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Yield an image (1, channels, height, width) per size that a timm model's config states; nothing for other models.

    A model built with another ``img_size`` or ``in_chans`` keeps the config of its weights, so its own grid comes
    first.
    """
    config = pretrained_config(model)
    if config is None:
        return
    shapes = {tuple(config[key]): f"timm's {key}" for key in _SIZE_KEYS if config.get(key)}
    channels = next(iter(shapes))[0]
    grid = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(grid, tuple) and len(grid) == 2:
        shapes = {(channels, *grid): "the model's img_size"} | shapes
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None:
        read = {(first.in_channels, *size): f"{source} and its in_chans" for (_, *size), source in shapes.items()}
        shapes |= {shape: source for shape, source in read.items() if shape not in shapes}
    for shape, source in shapes.items():
        inputs = Inputs((Sampler(model).floats(1, *shape),))
        yield Inputs(inputs.args, origin=f"inferred: {describe(inputs)} from {source}")


def pretrained_config(model: nn.Module) -> Mapping[str, Any] | None:
    """Return a timm model's ``pretrained_cfg`` (formerly ``default_cfg``), or ``None`` for any other model."""
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        if isinstance(config, Mapping) and config.get("input_size"):
            return cast("Mapping[str, Any]", config)
    return None
