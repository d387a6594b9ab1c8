"""transformers: example inputs from the model's config and the signature of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from layerprune.inputs import Inputs, Sampler, describe

_NUM_TOKENS = 16
_NUM_SPECTRA = 128
_NUM_SAMPLES = 16000
_MODALITIES = ("input_ids", "pixel_values", "input_features")
_IMAGE_SIDES = (224, 384, 64, 512)


def example_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Yield what a transformers model may take, likeliest first; nothing for other models.

    Which fields are filled follows from ``main_input_name`` and the parameters of ``forward``, their shapes from the
    config: text, images, video, audio, time series, and pairs of text and images. Last come the ``dummy_inputs``.
    """
    if not is_transformers_model(model):
        return
    parameters = inspect.signature(model.forward).parameters
    state = {"use_cache": False} if "use_cache" in parameters else {}  # a cache in the output is state, not a result
    for fields in _FieldSets(model, parameters):
        origin = f"inferred: {describe(Inputs((), fields))} from the transformers config"
        yield Inputs((), {**fields, **state}, origin)
    dummy = _dummy_inputs(model)
    if dummy:
        origin = f"inferred: {describe(Inputs((), dummy))}, transformers' dummy inputs"
        yield Inputs((), {**dummy, **state}, origin)


def settle(copy: nn.Module) -> None:
    """Make a copy of a transformers model recordable; other models are left alone.

    Key-value caches, which are state and no result, stay out of the outputs. A mixture of experts runs them batched:
    the grouped kernels refuse float32 on fake tensors, and the eager loop reaches only the experts that are hit.
    """
    for module in copy.modules():
        if not is_transformers_model(module):
            continue
        whole = cast(Any, module.config)
        for config in (whole, *vars(whole).values()):
            if getattr(config, "use_cache", False) is True:
                config.use_cache = False
        choose = getattr(module, "set_experts_implementation", None)
        if choose is not None and getattr(whole, "_experts_implementation", None) is not None:
            choose("batched_mm")


def is_transformers_model(model: nn.Module) -> bool:
    """Whether a model is of a transformers class, or of a class derived from one."""
    library = any(cls.__module__.partition(".")[0] == "transformers" for cls in type(model).__mro__)
    return library and hasattr(model, "config") and hasattr(model, "main_input_name")


def _dummy_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Return the library's own example; it is written for some classes only and may not fit."""
    try:
        dummy = cast("Mapping[str, Any]", model.dummy_inputs)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return {}
    device = Sampler(model).device
    return {name: value.to(device) for name, value in dummy.items() if isinstance(value, Tensor)}


class _FieldSets:
    """The sets of fields that one model's forward may take, as tensors by name."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, inspect.Parameter]) -> None:
        self._model = model
        self._parameters = parameters
        self._config = _Config(model.config)
        self._sampler = Sampler(model)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the main field with what forward requires beside it, then with the other modalities too."""
        known = [name for name in self._parameters if name in _SHAPES]
        stated = cast("str | list[str]", self._model.main_input_name)
        main = [name for name in known if name in ([stated] if isinstance(stated, str) else stated)] or known[:1]
        required = [name for name in known if self._parameters[name].default is inspect.Parameter.empty]
        alone = list(dict.fromkeys([*main, *required]))
        together = list(dict.fromkeys([*alone, *(name for name in _MODALITIES if name in known)]))
        for names in dict.fromkeys([tuple(alone), tuple(together)]):
            for shapes in product(*(_SHAPES[name](self._config) for name in names)) if names else ():
                fields = {name: self._draw(name, shape) for name, shape in zip(names, shapes, strict=True)}
                fields |= self._companions(fields)
                if "decoder_input_ids" in self._parameters:
                    yield fields | {"decoder_input_ids": self._tokens((1, _NUM_TOKENS // 2))}
                yield fields

    def _draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name == "input_ids":
            return self._tokens(shape)
        return torch.ones_like(self._sampler.floats(*shape)) if "mask" in name else self._sampler.floats(*shape)

    def _companions(self, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what follows from the main fields: masks, and the boxes of a text's words."""
        found: dict[str, Tensor] = {}
        text = fields.get("input_ids")
        if text is not None and "attention_mask" in self._parameters:
            found["attention_mask"] = torch.ones_like(text)
        if text is not None and "bbox" in self._parameters:
            found["bbox"] = self._sampler.integers(range(1000), *text.shape, 1).repeat(1, 1, 4)  # empty boxes are valid
        mask = self._parameters.get("input_features_mask")
        if mask is not None and mask.default is mask.empty:
            found["input_features_mask"] = torch.ones_like(fields["input_features"][..., 0], dtype=torch.int64)
        return found

    def _tokens(self, shape: tuple[int, ...]) -> Tensor:
        """Draw ordinary tokens of the vocabulary, the last one the end of the text."""
        special = self._config.special_tokens()
        vocabulary = self._vocabulary_size()
        ordinary = [token for token in range(vocabulary) if token not in special] or list(range(vocabulary))
        drawn = self._sampler.integers(range(len(ordinary)), *shape)
        if drawn.device.type == "meta":
            return drawn
        tokens = torch.tensor(ordinary, device=drawn.device)[drawn]
        end = self._config.number("eos_token_id")
        if end is not None and 0 <= end < vocabulary:
            tokens[..., -1] = end
        return tokens

    def _vocabulary_size(self) -> int:
        """Return how many tokens the model embeds."""
        try:
            embedding = self._model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        except (AttributeError, NotImplementedError):
            embedding = None
        if isinstance(embedding, nn.Embedding):
            return embedding.num_embeddings
        return self._config.number("vocab_size") or 2


class _Config:
    """A model's config with the configs inside it, read as one."""

    def __init__(self, config: Any) -> None:
        self._configs = [config]
        for outer in self._configs:  # grows on the way: breadth first
            inner = [value for value in vars(outer).values() if hasattr(value, "model_type")]
            self._configs += [value for value in inner if value not in self._configs]

    def values(self, *names: str) -> Iterator[Any]:
        """Yield what stands under the names, outer configs first."""
        for config in self._configs:
            yield from (value for name in names if (value := getattr(config, name, None)) is not None)

    def number(self, *names: str) -> int | None:
        """Return the first whole number under one of the names."""
        return next((value for value in self.values(*names) if type(value) is int), None)

    def special_tokens(self) -> set[int]:
        """Return the tokens that have a meaning of their own: padding, ends, placeholders of images."""
        items = [item for config in self._configs for item in vars(config).items()]
        return {value for name, value in items if name.endswith(("_token_id", "_token_index")) and type(value) is int}

    def image_sizes(self) -> Iterator[tuple[int, int]]:
        """Yield (height, width) as the configs state it, then usual ones."""
        for value in self.values("image_size", "crop_size", "img_size"):
            if isinstance(value, int):
                yield value, value
            elif isinstance(value, Mapping) and {"height", "width"} <= value.keys():
                yield value["height"], value["width"]
            elif isinstance(value, Sequence) and len(cast("Sequence[int]", value)) == 2:
                yield value[0], value[1]
        yield from ((side, side) for side in _IMAGE_SIDES)


_Shapes = Iterator[tuple[int, ...]]


def _text(config: _Config) -> _Shapes:
    yield 1, min(_NUM_TOKENS, config.number("max_position_embeddings", "n_positions") or _NUM_TOKENS)


def _images(config: _Config) -> _Shapes:
    channels = config.number("num_channels", "in_channels", "in_chans") or 3
    frames = config.number("num_frames")
    sizes = list(dict.fromkeys(config.image_sizes()))
    for size in sizes:
        if frames is not None:
            yield 1, frames, channels, *size
        yield 1, channels, *size
    yield 1, 2, channels, *sizes[0]  # two views to match


def _videos(config: _Config) -> _Shapes:
    channels = config.number("num_channels", "in_channels", "in_chans") or 3
    frames = config.number("frames_per_clip", "num_frames") or 8
    yield from ((1, frames, channels, height, width) for height, width in dict.fromkeys(config.image_sizes()))


def _waveforms(config: _Config) -> _Shapes:
    """A spectrogram where the config has one, a second of sound, and one with channels as codecs take it."""
    bins, length = config.number("num_mel_bins"), config.number("max_length")
    if bins is not None and length is not None:
        yield 1, length, bins
    yield 1, _NUM_SAMPLES
    yield 1, config.number("audio_channels") or 1, _NUM_SAMPLES


def _spectra(config: _Config) -> _Shapes:
    bins = config.number("num_mel_bins") or 80
    positions = config.number("max_source_positions")
    if positions is not None:
        yield 1, bins, 2 * positions  # Whisper's encoder halves the time
    yield 1, _NUM_SPECTRA, bins
    yield 1, bins, _NUM_SPECTRA
    for width in config.values("feature_projection_input_dim", "input_feat_per_channel", "input_dim"):
        yield 1, _NUM_SPECTRA, width
    yield 1, 1, config.number("spec_size") or 1001, bins


def _series(config: _Config) -> _Shapes:
    length = config.number("context_length", "prediction_length") or 32
    lags = max((max(cast("list[int]", lags)) for lags in config.values("lags_sequence") if lags), default=0)
    channels = config.number("num_input_channels", "input_size") or 1
    yield 1, length + lags, channels
    yield 1, length + lags


def _series_features(config: _Config) -> _Shapes:
    yield from ((*shape[:2], config.number("num_time_features") or 1) for shape in list(_series(config))[:1])


def _flat_patches(config: _Config) -> _Shapes:
    patch = config.number("patch_size") or 16
    yield 1, 64, 3 * patch * patch + 2  # each patch comes with its row and column


_SHAPES: dict[str, Callable[[_Config], _Shapes]] = {
    "input_ids": _text,
    "pixel_values": _images,
    "pixel_values_videos": _videos,
    "input_values": _waveforms,
    "input_features": _spectra,
    "past_values": _series,
    "past_observed_mask": _series,
    "past_time_features": _series_features,
    "flattened_patches": _flat_patches,
}
