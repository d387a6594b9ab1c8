"""Random inputs for a tiny transformers model: the fields that layerprune infers, with fresh values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from layerprune.adapters.transformers.example_inputs import transformers_example_inputs
from layerprune.inputs import Inputs, Sampler, infer_inputs
from layerprune.tensors import tensors_in
from menagerie.entry import Batch, NoVariant

Fields = Mapping[str, Any]

_SMALL_IMAGE = 64
_fields: WeakKeyDictionary[nn.Module, dict[tuple[int, bool], Fields]] = WeakKeyDictionary()


def make(model: nn.Module, batch: int, variant: int) -> Batch:
    """Draw ``batch`` samples; variant 1 has another length or another size of image.

    Raises:
        NoVariant: the model takes no other size.
    """
    fields = _template(model, variant)
    drawn = {name: _draw(model, name, value, batch) for name, value in fields.items()}
    _pad(model, drawn)
    return (), drawn


def _template(model: nn.Module, variant: int) -> Fields:
    """Return one sample of the variant, and keep it for the next call."""
    known = _fields.setdefault(model, {})
    if variant not in known:
        known[variant] = _infer(model) if variant == 0 else _other_size(model, _template(model, 0))
    return known[variant]


def _infer(model: nn.Module) -> Fields:
    """Find what the model takes: what the library infers, with smaller images first."""
    small = (Inputs((), fields) for item in transformers_example_inputs(model) if (fields := _smaller(item.kwargs)))
    proposals = chain(small, transformers_example_inputs(model))
    return infer_inputs(model, lambda inputs: attempt(model, inputs.kwargs), proposals).kwargs


def attempt(model: nn.Module, fields: Fields) -> Exception | None:
    """Run the model once, in eval mode; return what went wrong, as outputs that are no numbers do."""
    training = model.training
    try:
        with torch.no_grad():
            output = model.eval()(**fields)
        if any(bool(value.isnan().any()) for value in tensors_in(output) if value.is_floating_point()):
            return ValueError("the output is not a number")
    except Exception as error:
        return error
    finally:
        model.train(training)
    return None


def _smaller(fields: Fields) -> Fields:
    """Make large images small and long waveforms short; empty where there are none."""
    changed = {}
    for name, value in fields.items():
        if _is_image(name, value) and value.shape[-1] > _SMALL_IMAGE:
            changed[name] = value[..., :_SMALL_IMAGE, :_SMALL_IMAGE]
        if name == "input_values" and value.shape[-1] > 4000:
            changed[name] = value[..., :4000]
    return {**fields, **changed} if changed else {}


def _is_image(name: str, value: Any) -> bool:
    """Whether a field is an image or a video that is not cut into patches yet."""
    return name.startswith("pixel_values") and isinstance(value, Tensor) and value.ndim > 3


def _other_size(model: nn.Module, fields: Fields) -> Fields:
    """Return one sample of another length or size that runs."""
    problem: Exception | None = None
    for candidate in _resized(fields):
        problem = attempt(model, candidate)
        if problem is None:
            return candidate
    raise NoVariant(f"no other size runs: {problem}")


def _resized(fields: Fields) -> Iterator[Fields]:
    """Yield the sample with its texts longer, its images larger or its sounds longer: at once, then each alone."""
    options: dict[str, list[Tensor]] = {}
    for name, value in fields.items():
        if not isinstance(value, Tensor) or value.ndim < 2:
            continue
        axes = (-2, -1) if _is_image(name, value) else (1,) if value.ndim == 2 else (1, -1)
        if _is_image(name, value):
            options[name] = [_stretched(value, axes)]
        elif name in ("bbox", "input_features_mask"):
            options[name] = [_stretched(value, (1,))]
        else:
            options[name] = [_stretched(value, (axis,)) for axis in dict.fromkeys(axes)]
    for choice in range(2):
        yield {**fields, **{name: values[min(choice, len(values) - 1)] for name, values in options.items()}}
    text = {name: values[0] for name, values in options.items() if name in ("input_ids", "attention_mask", "bbox")}
    if text and len(text) < len(options):
        yield {**fields, **text}
    for name, values in options.items():
        if name not in ("attention_mask", "bbox"):
            yield from ({**fields, name: value} for value in values if name not in text)


def _stretched(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Make a tensor half as long again along the axes, the end repeated where the start was special."""
    for axis in axes:
        length = value.shape[axis]
        value = torch.cat([value.narrow(axis, 0, length // 2), value], dim=axis)
    return value


def _draw(model: nn.Module, name: str, value: Any, batch: int) -> Any:
    """Draw values like those of one sample."""
    if not isinstance(value, Tensor):
        return value
    shape = (batch * value.shape[0], *value.shape[1:])
    repeated = value.repeat(batch, *[1] * (value.ndim - 1))
    if "mask" in name:
        return repeated.to(Sampler(model).dtype) if value.is_floating_point() else repeated
    if value.is_floating_point():
        return torch.randn(shape, dtype=Sampler(model).dtype)
    if name == "bbox":
        return torch.randint(0, 60, (*shape[:-1], 1)).repeat(1, 1, 4)  # empty boxes are valid
    if name not in ("input_ids", "decoder_input_ids"):
        return repeated
    tokens = _ordinary(model)
    drawn = tokens[torch.randint(len(tokens), shape)]
    special = torch.isin(repeated, tokens, invert=True)
    return torch.where(special, repeated, drawn)


def _ordinary(model: nn.Module) -> Tensor:
    """Return the tokens without a meaning of their own."""
    configs = [model.config]
    for config in configs:  # grows on the way
        configs += [value for value in vars(config).values() if hasattr(value, "model_type")]
    sizes = [size for c in configs if type(size := vars(c).get("vocab_size")) is int]
    special: set[int] = set()
    for config in configs:
        for name, value in vars(config).items():
            if name.endswith(("_token_id", "_token_index")):
                special |= set(value) if isinstance(value, (list, tuple)) else {value}
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    size = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else min(sizes, default=2)
    ordinary = [token for token in range(size) if token not in special]
    return torch.tensor(ordinary or list(range(size)))


def _pad(model: nn.Module, fields: dict[str, Any]) -> None:
    """Pad the last sample at its right end, where there is a mask for it and the model runs so."""
    ids, mask = fields.get("input_ids"), fields.get("attention_mask")
    if ids is None or mask is None or len(ids) < 2 or ids.shape != mask.shape or ids.shape[1] < 8:
        return
    pad = getattr(model.config, "pad_token_id", None)
    padded_ids, padded_mask = ids.clone(), mask.clone()
    padded_mask[-1, -3:] = 0
    if type(pad) is int and 0 <= pad < 99:
        padded_ids[-1, -4] = ids[-1, -1]
        padded_ids[-1, -3:] = pad
    if attempt(model, {**fields, "input_ids": padded_ids, "attention_mask": padded_mask}) is None:
        fields.update(input_ids=padded_ids, attention_mask=padded_mask)
