"""Finds the modules of a transformers model that write the key-value cache, and measures the cache's growth.

transformers asks one layer on behalf of all: the first of its kind for the length of the past, and the last recurrent
layer for the presence of a past. Without the attention of that layer, generation gives wrong tokens without an error.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from layerprune.inputs import Inputs
from layerprune.modules import CallTracker, names_by_module
from layerprune.tensors import tensors_in

_WRITES = ("update", "update_conv_state", "update_recurrent_state")
_READS = ("get_seq_length", "get_mask_sizes")
_CACHES = ("past_key_values", "cache_params")
#: Attributes that hold a module's place in the cache.
PLACES = ("layer_idx", "layer_id", "layer_number")


@dataclass(frozen=True)
class CacheUse:
    """The use of the cache in one step of generation.

    Attributes:
        writers: (number of the cache, place, recurrent or not) → the modules that write there.
        asked: the places that other modules than their writers ask about the past; True for recurrent ones.
        answers: the answers, by kind of cache layer.
        kinds: (number of the cache, place) → the kind of cache layer.
    """

    writers: Mapping[tuple[int, int, bool], tuple[str, ...]]
    asked: frozenset[tuple[int, int, bool]]
    answers: frozenset[tuple[str, str, str]]
    kinds: Mapping[tuple[int, int], str]


def by_name(model: nn.Module, inputs: Inputs) -> Inputs | None:
    """Inputs with all arguments by name; None where an argument has no name."""
    if not inputs.args:
        return inputs
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(inputs.args) > len(names):
        return None
    return Inputs((), {**dict(zip(names, inputs.args, strict=False)), **inputs.kwargs})


def may_cache(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the forward takes a cache, and the inputs are tokens that a second step can continue."""
    takes = set(inspect.signature(model.forward).parameters)
    text = {"input_ids", "decoder_input_ids"} & inputs.kwargs.keys()
    return not inputs.args and bool(text) and "use_cache" in takes and bool(takes & set(_CACHES))


def observe_cache(
    model: nn.Module, inputs: Inputs, running: Callable[[], AbstractContextManager[None]], *, prepared: bool
) -> CacheUse | None:
    """Run a forward that fills a cache and a forward that reads it, and record the use; None where no cache is filled.

    ``prepared`` starts with an empty cache from the config, as ``generate`` does, and not with the forward's own. All
    ``inputs`` have names and may be written into; ``running`` is the context of the forwards.
    """
    with running():
        empty = _empty_cache(model) if prepared else {}
        watch = _Watch(model)
        for cache in empty.values():
            watch.attach(cache)
        with watch.tracker.watching(model):
            first = model(**{**inputs.kwargs, **empty, "use_cache": True})
            name = _cache_in(first)
            if name is None:
                return None
            cache = getattr(first, name)
            watch.attach(cache)
            watch.read.clear()  # answers about an empty past
            model(**_next(inputs.kwargs, first), **{name: cache, "use_cache": True})
    return watch.use()


def cache_growth(
    model: nn.Module, inputs: Inputs, running: Callable[[], AbstractContextManager[None]], *, prepared: bool
) -> int | None:
    """Run a forward that fills a cache and a forward with one more token; arguments as for :func:`observe_cache`.

    Returns:
        Bytes for one more token of every sample; None where the model fills no cache.
    """
    with running():
        empty = _empty_cache(model) if prepared else {}
        first = model(**{**inputs.kwargs, **empty, "use_cache": True})
        name = _cache_in(first)
        if name is None:
            return None
        cache = getattr(first, name)
        before = _bytes_in(cache)
        second = model(**_next(inputs.kwargs, first), **{name: cache, "use_cache": True})
        return _bytes_in(getattr(second, name)) - before


def _cache_in(out: Any) -> str | None:
    return next((name for name in _CACHES if getattr(out, name, None) is not None), None)


def _bytes_in(cache: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_in(cache))


def generates(model: nn.Module) -> bool:
    """Whether ``generate`` would make the model's cache."""
    can = getattr(model, "can_generate", lambda: False)
    makes = getattr(model, "_supports_default_dynamic_cache", lambda: True)
    return bool(can()) and bool(makes())


def _empty_cache(model: nn.Module) -> dict[str, Any]:
    library = cast(Any, importlib.import_module("transformers.cache_utils"))
    config = cast(Any, model).config
    some = [library.DynamicCache(config=config.get_text_config(decoder=True)) for _ in range(2)]
    takes = inspect.signature(model.forward).parameters
    name = next(name for name in _CACHES if name in takes)
    return {name: library.EncoderDecoderCache(*some) if config.is_encoder_decoder else some[0]}


def _next(given: Mapping[str, Any], first: Any) -> dict[str, Any]:
    name = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    found: dict[str, Any] = {name: given[name][:, -1:]}
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor):
        more = mask if name != "input_ids" else torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
        found["attention_mask"] = more
    if getattr(first, "encoder_last_hidden_state", None) is not None:
        found["encoder_outputs"] = (first.encoder_last_hidden_state,)
    return found


class _Watch:
    """Records the accesses of modules to the layers of a cache."""

    def __init__(self, model: nn.Module) -> None:
        self.tracker = CallTracker(names_by_module(model, only_first=True))
        self.seen: list[Any] = []
        self.written: dict[tuple[int, int, bool], dict[str, None]] = {}
        self.read: list[tuple[tuple[int, int, bool], str, str, tuple[str, ...]]] = []
        self.kinds: dict[tuple[int, int], str] = {}

    def attach(self, cache: Any) -> None:
        parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
        for number, part in enumerate(parts if parts[0] is not None else [cache]):
            self.attach_part(number, part)

    def attach_part(self, number: int, cache: Any) -> None:
        layers = cast("Sequence[Any]", getattr(cache, "layers", ()))
        for place, layer in enumerate(layers):
            self.kinds[number, place] = f"{type(layer).__name__} {getattr(layer, 'sliding_window', None)}"
            for method in (*_WRITES, *_READS) if self.is_new(layer) else ():
                if hasattr(layer, method):
                    setattr(layer, method, self.watched(number, place, method, getattr(layer, method)))
        recurrent = [i for i, layer in enumerate(layers) if hasattr(layer, "update_recurrent_state")]
        asks = getattr(cache, "has_previous_state", None)
        if recurrent and asks is not None and self.is_new(cache):
            cache.has_previous_state = self.watched(number, recurrent[-1], "has_previous_state", asks)

    def is_new(self, thing: Any) -> bool:
        known = any(thing is other for other in self.seen)
        self.seen += [] if known else [thing]
        return not known

    def watched(self, number: int, place: int, method: str, run: Callable[..., Any]) -> Callable[..., Any]:
        kind = method not in ("update", *_READS)

        @functools.wraps(run)
        def seen(*args: Any, **kwargs: Any) -> Any:
            out = run(*args, **kwargs)
            if method == "has_previous_state" and (args or kwargs.get("layer_idx") is not None):
                return out  # a layer asks about its own place
            running = self.tracker.running
            if method in _WRITES:
                self.written.setdefault((number, place, kind), {})[self.tracker.fqn] = None
            elif not self.asks_own(place):
                around = () if running is None else tuple(call.key.fqn for call in running.outward())
                self.read.append(((number, place, kind), method, repr(out), around))
            return out

        return seen

    def asks_own(self, place: int) -> bool:
        """Whether the asking module has this place, as a cross-attention beside a removable self-attention."""
        held = vars(self.tracker.running.module) if self.tracker.running is not None else {}
        return any(held.get(name) == place for name in PLACES)

    def use(self) -> CacheUse:
        writers = {where: tuple(names) for where, names in self.written.items()}
        others = [read for read in self.read if not set(writers.get(read[0], ())) & set(read[3])]
        return CacheUse(
            writers=writers,
            asked=frozenset(where for where, *_ in others),
            answers=frozenset((self.kinds[where[:2]], method, answer) for where, method, answer, _ in others),
            kinds=self.kinds,
        )
