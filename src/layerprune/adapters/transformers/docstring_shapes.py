"""Input shapes that the docstring of a transformers forward states, with sizes from the config."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from torch import nn

from layerprune.adapters.transformers.field_shapes import NUM_TOKENS, Config

# name (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
_STATED = re.compile(r"^\s*(\w+) \(`(?:torch\.)?(\w*Tensor)`\s+of shape `[(\[]([^`]*)[)\]]`", re.MULTILINE)
_HEIGHTS = {"height", "image_height"}
_WIDTHS = {"width", "image_width"}
_ONE = {"batch_size", "batch", "num_images", "num_videos", "num_images_or_videos"}


def documented(model: nn.Module, config: Config) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Map each tensor with a shape in the docstring of ``forward`` to this shape, and to whether it holds integers."""
    found: dict[str, tuple[tuple[int, ...], bool]] = {}
    for name, kind, shape in _STATED.findall(inspect.getdoc(model.forward) or ""):
        found.setdefault(name, (tuple(_sizes(shape, config)), kind in ("LongTensor", "IntTensor", "BoolTensor")))
    return found


def _sizes(shape: str, config: Config) -> Iterator[int]:
    for dimension in re.split(r",(?![^(]*\))", shape):
        if dimension.strip():
            yield _size(dimension.strip(), config)


def _size(dimension: str, config: Config) -> int:
    """Evaluate a size such as ``num_channels * patch_size``; an unknown name is a length."""
    for sign in ("+", "*"):
        first, found, rest = dimension.partition(sign)
        if found:
            left, right = _size(first.strip(), config), _size(rest.strip(), config)
            return left + right if sign == "+" else left * right
    listed = re.fullmatch(r"len\((?:\w+\.)?(\w+)\)", dimension)
    if listed is not None:
        return config.length(listed[1]) or 1
    name = dimension.rpartition(".")[2]
    if name.isdigit():
        return int(name)
    if name in _ONE:
        return 1
    if name in _HEIGHTS | _WIDTHS:
        return next(config.image_sizes())[name in _WIDTHS]
    if name == "num_channels":
        return config.channels()
    stated = config.side(name)
    if stated is None and name.endswith(("dim", "size")):
        stated = config.positive("hidden_size")
    return stated or NUM_TOKENS
