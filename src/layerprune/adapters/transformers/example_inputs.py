"""Example inputs of a transformers model, from its config and the signature of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any, cast

from torch import Tensor, nn

from layerprune.adapters.transformers.derived_fields import DerivedFields
from layerprune.adapters.transformers.field_shapes import SHAPES, Config, patch_grids, text
from layerprune.inputs import Inputs, Sampler, describe

_MODALITIES = ("input_ids", "pixel_values", "input_features")
_GRIDS = ("grid_thw", "grid_hws", "spatial_shapes", "pixel_position_ids")
_LIKELY = 3
_MOST_SHAPES = 20


def transformers_example_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Yield possible inputs of a transformers model, most likely first; nothing for other models.

    ``main_input_name`` and the parameters of ``forward`` select the fields; the config gives their shapes.
    """
    if not is_transformers_model(model):
        return
    parameters = inspect.signature(model.forward).parameters
    state = {"use_cache": False} if "use_cache" in parameters else {}  # a cache in the output is state, no result
    for fields in _FieldSets(model, parameters):
        origin = f"inferred: {describe(Inputs((), fields))} from the transformers config"
        yield Inputs((), {**fields, **state}, origin)
    dummy = _dummy_inputs(model)
    if dummy:
        origin = f"inferred: {describe(Inputs((), dummy))}, transformers' dummy inputs"
        yield Inputs((), {**dummy, **state}, origin)


def settle_config(copy: nn.Module) -> None:
    """Make a copy of a transformers model recordable; other models are not changed.

    Key-value caches are state, and stay out of the outputs. Experts of a mixture run batched: the grouped kernels
    refuse float32 on fake tensors, and the eager loop runs only experts that receive tokens.
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


def untie_in_config(model: nn.Module) -> None:
    """Turn off tied embeddings in the configs of a transformers model; other models are not changed."""
    for module in model.modules():
        if is_transformers_model(module):
            whole = cast(Any, module.config)
            for config in (whole, *vars(whole).values()):
                if getattr(config, "tie_word_embeddings", False) is True:
                    config.tie_word_embeddings = False


def is_transformers_model(model: nn.Module) -> bool:
    """Whether the class of a model is from transformers, or derived from such a class."""
    library = any(cls.__module__.partition(".")[0] == "transformers" for cls in type(model).__mro__)
    return library and hasattr(model, "config") and hasattr(model, "main_input_name")


def builds_from_config(model: nn.Module) -> bool:
    """Whether a model's class builds itself from a config; wrappers of such a model, as peft's, do not."""
    own = any(c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in type(model).__mro__)
    return own and is_transformers_model(model)


def _dummy_inputs(model: nn.Module) -> dict[str, Tensor]:
    try:
        dummy = cast("Mapping[str, Any]", model.dummy_inputs)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return {}
    device = Sampler(model).device
    return {name: value.to(device) for name, value in dummy.items() if isinstance(value, Tensor)}


class _FieldSets:
    """Sets of fields, as tensors by name, that the forward of a model may take."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, inspect.Parameter]) -> None:
        self._parameters = parameters
        self._config = Config(model)
        self._sampler = Sampler(model)
        self._companions = DerivedFields(model, self._config, self._sampler)
        stated = cast("str | list[str]", model.main_input_name)
        self._main = [stated] if isinstance(stated, str) else stated
        self._required = self._companions.required_names

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the main field with required fields, then with other modalities; unlikely shapes come last.

        All fields that can be drawn follow likely shapes, since forwards may need fields that their signatures call
        optional.
        """
        if any(name.endswith(_GRIDS) for name in self._required):
            for fields in self._patches():
                required = self._companions.required(fields)
                if required is not None:
                    yield {**fields, **required}
        known = [name for name in self._parameters if name in SHAPES]
        main = [name for name in known if name in self._main] or ([] if self._required else known[:1])
        alone = list(dict.fromkeys([*main, *(name for name in known if name in self._required)]))
        together = list(dict.fromkeys([*alone, *(name for name in _MODALITIES if name in known)]))
        sets = list(dict.fromkeys([tuple(alone), tuple(together), tuple(known)]))
        for names in sets[:2]:
            for fields in islice(self._shaped(names), _LIKELY):
                yield from self._usual(fields)
        for fields in islice(self._shaped(sets[0]), 1):
            yield from self._plainer(fields)
        for names in sets:
            for fields in islice(self._shaped(names), _LIKELY):
                yield from self._with_options(fields)
        if "pixel_values" in self._parameters:
            for fields in self._patches():
                yield from self._with_options(fields)
        for names in sets:
            for fields in islice(self._shaped(names), _LIKELY if names in sets[:2] else 0, _MOST_SHAPES):
                yield from self._usual(fields)

    def _shaped(self, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
        """Yield fields with their own shapes in every combination, most likely first."""
        options = [list(enumerate(SHAPES[name](self._config))) for name in names]
        for choice in sorted(product(*options), key=lambda choice: sum(rank for rank, _ in choice)):
            yield {name: self._draw(name, shape) for name, (_, shape) in zip(names, choice, strict=True)}

    def _usual(self, fields: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        required = self._companions.required(fields)
        if required is None or not (fields or required):
            return
        for given in self._companions.texts({**fields, **required}):
            yield from self._decoding({**given, **self._companions.usual(given)})

    def _decoding(self, fields: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Add a decoder's first tokens, then leave them out, since some models make their own."""
        if "decoder_input_ids" in self._parameters:
            yield {**fields, "decoder_input_ids": self._companions.decoder_tokens()}
        yield fields

    def _with_options(self, fields: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        required = self._companions.required(fields)
        if required is None:
            return
        whole = {**fields, **required}
        options = self._companions.optional(whole)
        if options.keys() - {"attention_mask", "bbox"}:
            yield {**whole, **options}

    def _patches(self) -> Iterator[dict[str, Tensor]]:
        """Yield an image as patches with their grid, and a text where the forward reads text."""
        grid = next((name for name in (*self._required, *self._parameters) if name.endswith(_GRIDS)), None)
        of = next((name for name in self._required if not name.endswith(_GRIDS)), "pixel_values")
        if grid is None or of not in self._parameters:
            return
        for shape, (time, height, width) in patch_grids(self._config):
            sizes: list[Any] = [time, height, width] if grid.endswith("thw") else [height, width]
            if grid.endswith("position_ids"):
                sizes = [[row, column] for row in range(height) for column in range(width)]
            fields = {of: self._sampler.floats(*shape), grid: self._companions.whole([sizes])}
            if "input_ids" in self._parameters:
                fields["input_ids"] = self._companions.tokens(next(text(self._config)))
            yield fields

    def _plainer(self, fields: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield fields without the usual derived fields, and with boxes as fractions of the page."""
        required = self._companions.required(fields)
        usual = self._companions.usual(fields)
        if required is None or not usual:
            return
        yield {**fields, **required}
        if "bbox" in usual:
            boxes = self._companions.fractions(usual["bbox"])
            yield from self._decoding({**fields, **required, **usual, "bbox": boxes})

    def _draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._companions.tokens(shape) if name == "input_ids" else self._sampler.floats(*shape)
