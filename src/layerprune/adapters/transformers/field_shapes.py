"""Shapes of a transformers model's input fields, from its config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from torch import nn

NUM_TOKENS = 16

_NUM_SPECTRA = 128
_NUM_SAMPLES = 16000
_IMAGE_SIDES = (224, 384, 64, 512, 448, 1024, 1536)
_GRID = 4


class Config:
    """A model's config and all configs inside it, read as one, with sizes that modules state."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._configs: list[Any] = [model.config]
        for outer in self._configs:  # grows in the loop: breadth first
            inner = [value for value in vars(outer).values() if hasattr(value, "model_type")]
            self._configs += [value for value in inner if value not in self._configs]

    def values(self, *names: str) -> Iterator[Any]:
        for config in self._configs:
            yield from (value for name in names if (value := getattr(config, name, None)) is not None)

    def number(self, *names: str) -> int | None:
        return next((value for value in self.values(*names) if type(value) is int), None)

    def positive(self, *names: str) -> int | None:
        """Return the first number above zero; some configs say -1 for no limit."""
        return next((value for value in self.values(*names) if type(value) is int and value > 0), None)

    def side(self, *names: str) -> int | None:
        for value in self.values(*names):
            first = cast("Sequence[Any]", value)[0] if isinstance(value, (list, tuple)) and value else value
            if type(first) is int and first > 0:
                return first
        return None

    def length(self, name: str) -> int | None:
        return next((len(cast("Sequence[Any]", v)) for v in self.values(name) if isinstance(v, (list, tuple))), None)

    def channels(self) -> int:
        return self.positive("num_channels", "in_channels", "in_chans", "image_channels") or 3

    def special_tokens(self) -> set[int]:
        items = [item for config in self._configs for item in vars(config).items()]
        return {value for name, value in items if name.endswith(("_token_id", "_token_index")) and type(value) is int}

    def image_sizes(self) -> Iterator[tuple[int, int]]:
        for value in self.values("image_size", "crop_size", "img_size"):
            yield from _height_and_width(value)
        for module in self._model.modules():  # modules of other libraries, which have no part in the config
            yield from _height_and_width(getattr(module, "img_size", None))
        yield from ((side, side) for side in _IMAGE_SIDES)


def _height_and_width(value: Any) -> Iterator[tuple[int, int]]:
    if isinstance(value, int):
        yield value, value
    elif isinstance(value, Mapping):
        sizes = cast("Mapping[str, int]", value)
        if {"height", "width"} <= sizes.keys():
            yield sizes["height"], sizes["width"]
    elif isinstance(value, Sequence) and len(cast("Sequence[int]", value)) == 2:
        yield value[0], value[1]


Shapes: TypeAlias = Iterator[tuple[int, ...]]


def text(config: Config) -> Shapes:
    """Token shapes within the model's positions; models of sound may read codes of all codebooks beside each token."""
    count = NUM_TOKENS + (config.positive("latent_query_num") or 0)
    count = min(count, config.positive("max_position_embeddings", "n_positions") or count)
    yield 1, count
    books = config.positive("num_codebooks")
    if books is not None:
        yield 1, count, books + 1
        yield 1, count, books


def _images(config: Config) -> Shapes:
    channels = config.channels()
    frames = config.number("num_frames")
    sizes = list(dict.fromkeys(config.image_sizes()))
    for size in sizes:
        if frames is not None:
            yield 1, frames, channels, *size
        yield 1, channels, *size
        if size == sizes[0]:
            yield 1, 2, channels, *size  # pairs of views or frames


def _videos(config: Config) -> Shapes:
    channels, frames = config.channels(), config.number("frames_per_clip", "num_frames") or 8
    yield from ((1, frames, channels, height, width) for height, width in dict.fromkeys(config.image_sizes()))


def _waveforms(config: Config) -> Shapes:
    """A spectrogram where the config has bins, sound without and with channels, and a length with more divisors."""
    bins, length = config.number("num_mel_bins"), config.number("max_length")
    if bins is not None and length is not None:
        yield 1, length, bins
    yield 1, _NUM_SAMPLES
    channels = config.number("audio_channels") or 1
    yield 1, channels, _NUM_SAMPLES
    yield 1, 3 * _NUM_SAMPLES
    yield 1, channels, 3 * _NUM_SAMPLES


def _spectra(config: Config) -> Shapes:
    bins = config.number("num_mel_bins") or 80
    positions = config.number("max_source_positions")
    window = config.positive("n_window")
    if window is not None:
        yield 1, bins, 2 * window  # windows of two frames per position
    if positions is not None:
        yield 1, bins, 2 * positions  # Whisper's encoder halves the time
    yield 1, _NUM_SPECTRA, bins
    yield 1, bins, _NUM_SPECTRA
    names = ("feature_projection_input_dim", "input_feat_per_channel", "input_dim", "input_size", "input_feat_size")
    widths = list(dict.fromkeys(width for width in config.values(*names) if type(width) is int))
    yield from ((1, _NUM_SPECTRA, width) for width in widths)
    hop = config.positive("hop_length")
    if hop is not None:  # as many frames as the waveform beside it
        yield from ((1, _NUM_SAMPLES // hop, width) for width in widths)
    yield 1, 1, config.number("spec_size") or 1001, bins


def _mel(config: Config) -> Shapes:
    bins = config.positive("input_feat_size", "num_mel_bins") or 80
    yield 1, _NUM_SPECTRA, bins
    yield 1, bins, _NUM_SPECTRA


def _series(config: Config) -> Shapes:
    length = config.number("context_length", "prediction_length") or 32
    lags = max((max(cast("list[int]", lags)) for lags in config.values("lags_sequence") if lags), default=0)
    channels = config.number("num_input_channels", "input_size") or 1
    shapes = [(1, length + lags, channels), (1, length + lags)]
    if channels == 1 and config.number("num_input_channels") is None:
        shapes.reverse()  # a series of one variable has no axis of variables
    yield from shapes


def _flat_patches(config: Config) -> Shapes:
    patch = config.number("patch_size") or 16
    yield 1, 64, config.channels() * patch * patch + 2  # each patch starts with its row and column


#: Fields with their own shapes; other fields are derived from these.
SHAPES: Mapping[str, Callable[[Config], Shapes]] = {
    "input_ids": text,
    "pixel_values": _images,
    "pixel_values_videos": _videos,
    "input_values": _waveforms,
    "input_features": _spectra,
    "audio_mel": _mel,
    "past_values": _series,
    "flattened_patches": _flat_patches,
}


def patch_grids(config: Config) -> Iterator[tuple[tuple[int, ...], tuple[int, int, int]]]:
    """Yield the shape of an image cut into patches, with its grid: (time, height, width) in patches.

    The patches are flat, as processors return them, or small images; a batch dimension may lead.
    """
    patch = config.side("patch_size", "spatial_patch_size") or 16
    frames = config.positive("temporal_patch_size", "patch_temporal") or 1
    merge = config.side("spatial_merge_size", "merge_size", "merge_kernel_size", "downsample_factor") or 1
    channels, side = config.channels(), _GRID * merge
    grid, count = (1, side, side), side * side
    area = channels * patch * patch
    yield (count, area * frames), grid
    if frames > 1:
        yield (count, area), grid
        yield (count, channels, frames, patch, patch), grid
    yield (1, count, area), grid
    yield (count, channels, patch, patch), grid
    yield (1, count, channels, patch, patch), grid
    width = config.positive("hidden_size", "embed_dim")
    if width is not None:
        yield (count, width), grid
    yield (_GRID * _GRID, patch * merge, patch * merge, channels), (1, _GRID, _GRID)
