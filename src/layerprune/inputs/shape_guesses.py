"""Guesses input shapes from the first layers of a model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

IMAGE_SIZES = (224, 32, 28, 64, 96, 128, 256, 299, 512, 384, 84, 48, 16, 8)
SIGNAL_LENGTHS = (128, 16, 1000, 16000, 64, 256, 512, 4096, 32, 8)
TOKEN_COUNTS = (8, 32, 64, 128, 16, 256, 512, 10, 20, 50, 100, 4)

_MAX_LAYERS = 6  # later layers hardly read the input
_EACH_AT_FIRST = 3
_TRIED_AT_LENGTH = 2


@dataclass(frozen=True)
class TensorSpec:
    """Shape of one tensor, and the range of its integers; None for floats."""

    shape: tuple[int, ...]
    integers: range | None = None


@dataclass(frozen=True)
class Guess:
    """Tensors of one forward call, and the layer that they fit."""

    args: tuple[TensorSpec, ...] = ()
    kwargs: Mapping[str, TensorSpec] = field(default_factory=dict[str, TensorSpec])
    source: str = ""


def guesses(model: nn.Module) -> Iterator[Guess]:
    """Yield guesses of the forward's arguments, likeliest first.

    The first embeddings, transforms and normalizations in order of registration each propose common shapes. A forward
    with several required parameters gets tensors by their names (``attention_mask``, ``t``, ``edge_index``), else
    equal shapes, and last one shape per child module (two towers).
    """
    positional, keywords = required_parameters(model)
    if positional is None:
        yield Guess(source="the signature of forward")
        return
    layers = _reading_layers(model)
    proposals = [(name, list(_proposals(layer))) for name, layer in layers]
    likely = [(name, spec) for name, specs in proposals for spec in specs[:_EACH_AT_FIRST]]
    other = [(name, spec) for name, specs in proposals[:_TRIED_AT_LENGTH] for spec in specs[_EACH_AT_FIRST:]]
    for name, spec in likely + other:
        if spec.shape[0] == 1 and not _GRAPHS.isdisjoint(positional):
            continue  # a graph of one node
        for specs in _one_for_each([*positional, *keywords], spec):
            yield _guess(specs, positional, keywords, f"'{name}'" if name else type(model).__name__)
    if len(positional) > 1 and not keywords:
        yield from _towers(proposals, len(positional))


def required_parameters(model: nn.Module) -> tuple[list[str] | None, list[str]]:
    """Names that forward requires by position, and by keyword.

    If nothing is required, the first parameter counts as required; if there is no parameter, ``None``.
    """
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # a forward written in C
        return ["input"], []
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    keywords = [p.name for p in required if p.kind is p.KEYWORD_ONLY]
    positional = [p.name for p in required if p.kind is not p.KEYWORD_ONLY]
    if required:
        return positional, keywords
    if parameters and parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        return [], [parameters[0].name]
    return ([parameters[0].name] if parameters else None), []


def _guess(specs: Sequence[TensorSpec], positional: list[str], keywords: list[str], source: str) -> Guess:
    named = dict(zip(keywords, specs[len(positional) :], strict=True))
    return Guess(tuple(specs[: len(positional)]), named, source)


def _one_for_each(names: Sequence[str], spec: TensorSpec) -> Iterator[list[TensorSpec]]:
    """Yield one spec per parameter: first by its name, then the same for each."""
    same = [spec] * len(names)
    companions = [_COMPANIONS[name](spec) if i and name in _COMPANIONS else spec for i, name in enumerate(names)]
    yield companions
    if companions != same:
        yield same


def _towers(proposals: Sequence[tuple[str, list[TensorSpec]]], count: int) -> Iterator[Guess]:
    """Yield a guess that gives each parameter the shape of another child module, and the reverse."""
    by_child: dict[str, tuple[str, list[TensorSpec]]] = {}
    for name, specs in proposals:
        by_child.setdefault(name.partition(".")[0], (name, specs))
    towers = list(by_child.values())[:count]
    if len(towers) == count:
        source = " and ".join(f"'{name}'" for name, _ in towers)
        specs = tuple(specs[0] for _, specs in towers)
        yield Guess(specs, source=source)
        yield Guess(specs[::-1], source=source)


_GRAPHS = {"edge_index", "adj"}
_COMPANIONS: dict[str, Callable[[TensorSpec], TensorSpec]] = {
    **dict.fromkeys(("t", "time", "timestep", "timesteps"), lambda _: TensorSpec((1,), range(1, 100))),
    **dict.fromkeys(("y", "label", "labels", "class_labels"), lambda _: TensorSpec((1,), range(2))),
    **dict.fromkeys(
        ("lengths", "lens", "input_lengths"), lambda spec: TensorSpec((1,), range(spec.shape[-1], spec.shape[-1] + 1))
    ),
    "attention_mask": lambda spec: TensorSpec(spec.shape[:2], range(1, 2)),
    "token_type_ids": lambda spec: TensorSpec(spec.shape[:2], range(1)),
    "offsets": lambda _: TensorSpec((1,), range(1)),
    "edge_index": lambda spec: TensorSpec((2, 16), range(spec.shape[0])),
    "adj": lambda spec: TensorSpec((spec.shape[0], spec.shape[0])),
}


def _reading_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers that may read the input: the first one of every child, then later ones, with different proposals."""
    known = [(name, module) for name, module in model.named_modules() if next(_proposals(module), None)]
    first_of_child: dict[str, tuple[str, nn.Module]] = {}
    for name, module in known:
        first_of_child.setdefault(name.partition(".")[0], (name, module))
    chosen: dict[tuple[TensorSpec, ...], tuple[str, nn.Module]] = {}
    for name, module in (*first_of_child.values(), *known):
        chosen.setdefault(tuple(_proposals(module)), (name, module))
        if len(chosen) == _MAX_LAYERS:
            break
    return list(chosen.values())


def _proposals(layer: nn.Module) -> Iterator[TensorSpec]:
    """Yield shapes that a layer may read; none if its type is unknown."""
    for types, propose in _READERS:
        if isinstance(layer, types):
            yield from propose(layer)
            return
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is not None and not isinstance(weight, UninitializedParameter):  # the user's own transform
        yield from _BY_WEIGHT.get(weight.ndim, lambda _: iter(()))(weight.shape)


def _tokens(count: int) -> Iterator[TensorSpec]:
    ids = range(min(1, count - 1), count)  # because 0 is often padding
    yield from (TensorSpec((1, length), ids) for length in TOKEN_COUNTS[:2])
    yield TensorSpec((8,), ids)
    yield from (TensorSpec((1, length), ids) for length in TOKEN_COUNTS[2:])


def _features(width: int) -> Iterator[TensorSpec]:
    """A vector, a sequence, a set, and images that are flattened or cut into patches of this width."""
    yield from (TensorSpec(shape) for shape in ((1, width), (1, 8, width), (8, width)))
    for channels in (1, 3):
        side = math.isqrt(width // channels)
        if side > 1 and channels * side * side == width:
            sizes = [size for size in IMAGE_SIZES if size > side and size % side == 0]
            yield from (TensorSpec((1, channels, size, size)) for size in (*sizes, side))


def _sequences(width: int, batch_first: bool) -> Iterator[TensorSpec]:
    yield TensorSpec((1, 8, width) if batch_first else (8, 1, width))
    yield TensorSpec((8, width))
    yield TensorSpec((1, 64, width) if batch_first else (64, 1, width))


def _signals(channels: int) -> Iterator[TensorSpec]:
    yield from (TensorSpec((1, channels, length)) for length in SIGNAL_LENGTHS)
    yield from (TensorSpec((1, length, channels)) for length in SIGNAL_LENGTHS[:3])
    if channels == 1:
        yield from (TensorSpec((1, length)) for length in (16000, 128))


def _images(channels: int) -> Iterator[TensorSpec]:
    yield from (TensorSpec((1, channels, size, size)) for size in IMAGE_SIZES)
    yield from (TensorSpec((1, size, size, channels)) for size in IMAGE_SIZES[:2])
    if channels == 1:
        yield from (TensorSpec((1, size, size)) for size in (128, 64))


def _volumes(channels: int) -> Iterator[TensorSpec]:
    sizes = ((16, 112, 112), (8, 32, 32), (16, 224, 224), (32, 32, 32), (64, 64, 64), (16, 16, 16), (8, 224, 224))
    yield from (TensorSpec((1, channels, *size)) for size in sizes)


def _latents(channels: int, dims: int) -> Iterator[TensorSpec]:
    yield from (TensorSpec((1, channels, *(size,) * dims)) for size in (1, 4, 8, 16, 32))
    yield TensorSpec((1, channels))


def _normalized(shape: Sequence[int]) -> Iterator[TensorSpec]:
    yield TensorSpec((1, 8, *shape))
    if len(shape) == 1:
        yield from _features(shape[0])
    yield TensorSpec((1, *shape))


# By type; the first match counts. A lazy layer has no width yet and proposes nothing.
_READERS: tuple[tuple[tuple[type, ...], Callable[[Any], Iterator[TensorSpec]]], ...] = (
    ((LazyModuleMixin,), lambda _: iter(())),
    ((nn.Embedding, nn.EmbeddingBag), lambda m: _tokens(m.num_embeddings)),
    ((nn.MultiheadAttention,), lambda m: _sequences(m.embed_dim, m.batch_first)),
    ((nn.RNNBase,), lambda m: _sequences(m.input_size, m.batch_first)),
    ((nn.RNNCellBase,), lambda m: iter([TensorSpec((1, m.input_size))])),
    ((nn.Bilinear,), lambda m: iter([TensorSpec((1, m.in1_features)), TensorSpec((1, m.in2_features))])),
    ((nn.Linear,), lambda m: _features(m.in_features)),
    ((nn.ConvTranspose1d,), lambda m: _latents(m.in_channels, 1)),
    ((nn.ConvTranspose2d,), lambda m: _latents(m.in_channels, 2)),
    ((nn.ConvTranspose3d,), lambda m: _latents(m.in_channels, 3)),
    ((nn.Conv1d,), lambda m: _signals(m.in_channels)),
    ((nn.Conv2d,), lambda m: _images(m.in_channels)),
    ((nn.Conv3d,), lambda m: _volumes(m.in_channels)),
    ((nn.BatchNorm1d,), lambda m: chain(islice(_features(m.num_features), 1), _signals(m.num_features))),
    ((nn.InstanceNorm1d,), lambda m: _signals(m.num_features)),
    ((nn.BatchNorm2d, nn.InstanceNorm2d), lambda m: _images(m.num_features)),
    ((nn.BatchNorm3d, nn.InstanceNorm3d), lambda m: _volumes(m.num_features)),
    ((nn.GroupNorm,), lambda m: _images(m.num_channels)),
    ((nn.LayerNorm,), lambda m: _normalized(m.normalized_shape)),
)

_BY_WEIGHT: dict[int, Callable[[Sequence[int]], Iterator[TensorSpec]]] = {
    1: lambda shape: _normalized(shape),
    2: lambda shape: chain(_features(shape[1]), _features(shape[0])),
    3: lambda shape: _signals(shape[1]),
    4: lambda shape: _images(shape[1]),
    5: lambda shape: _volumes(shape[1]),
}
