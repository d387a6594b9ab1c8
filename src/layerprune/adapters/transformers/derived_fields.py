"""Input fields of transformers models that follow from other fields: masks, lengths, second texts, future values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.adapters.transformers.docstring_shapes import documented
from layerprune.adapters.transformers.field_shapes import NUM_TOKENS, SHAPES, Config
from layerprune.inputs import Sampler

Fields = Mapping[str, Tensor]

# The forward makes these fields itself, or they select another mode of it.
_NEVER = ("label", "past_key", "embed", "position_ids", "encoder_outputs", "token_type_ids", "cache", "codes")
_IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


class DerivedFields:
    """Draws a field by its name, its annotation, the docstring, and the fields already drawn."""

    def __init__(self, model: nn.Module, config: Config, sampler: Sampler) -> None:
        self._model = model
        self._config = config
        self._sampler = sampler
        self._parameters = inspect.signature(model.forward).parameters
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self.required_names = [
            name for name, p in self._parameters.items() if p.default is p.empty and p.kind not in variadic
        ]
        self._documented = documented(model, config)
        self._rules: dict[str, Callable[[Fields], Tensor | None]] = {
            "bbox": self._boxes,
            "past_time_features": self._past_features,
            "future_values": self._future_values,
            "future_time_features": self._future_features,
            "static_categorical_features": self._categories,
            "static_real_features": self._statics,
            "past_values_padding": lambda fields: _zeros(fields.get("past_values")),
            "past_observed_mask": lambda fields: _ones(fields.get("past_values")),
            "merge_sizes": lambda _: self.whole([self._config.side("spatial_merge_size", "merge_size") or 1]),
            "classes_structure": lambda _: self.whole([1]),
            "target_sizes": self._patches_of_image,
            "image_embeds_position_mask": self._places_of_image,
            "image_attention_mask": self._images_of_token,
            "task_inputs": lambda _: self.tokens((1, self._config.positive("task_seq_len") or NUM_TOKENS)),
            "state": lambda _: self._vector("max_state_dim", "state_dim"),
        }

    def draw(self, name: str, fields: Fields) -> Tensor | None:
        """Return a value for a field, or None where neither its name nor the docstring gives a shape."""
        rule = self._rules.get(name)
        if rule is not None:
            return rule(fields)
        if name.endswith("input_ids"):
            return self.tokens((1, NUM_TOKENS), second=True)
        if name.startswith("prompt_"):
            like = fields.get("pixel_values")
            return None if like is None else self._sampler.floats(*like.shape)
        if "mask" in name and (mask := self._mask(name, fields)) is not None:
            stated = str(self._parameters[name].annotation)
            return mask.bool() if "BoolTensor" in stated and name != "attention_mask" else mask
        if name.startswith("encoder") and name.endswith("hidden_states"):
            return self._vectors(name)
        if name in self._documented:
            shape, whole = self._documented[name]
            if "mask" in name:
                return self._kept(shape)
            return self._sampler.integers(range(1), *shape) if whole else self._sampler.floats(*shape)
        return self._vectors(name) if name.endswith(("hidden_states", "embeds")) else None

    def required(self, fields: Fields) -> dict[str, Tensor] | None:
        """Return the missing required fields, or None where a field cannot be drawn."""
        made: dict[str, Tensor] = {}
        for name in self.required_names:
            if name not in fields:
                drawn = self.draw(name, {**fields, **made})
                if drawn is None:
                    return None
                made[name] = drawn
        return made

    def usual(self, fields: Fields) -> dict[str, Tensor]:
        """Return fields that usually come along: a text's mask and boxes, future values of a series."""
        names = ["attention_mask", "bbox"] if "input_ids" in fields else []
        names += ["static_categorical_features", "static_real_features"]
        names += ["future_values", "future_time_features"] if "past_time_features" in self._parameters else []
        return self._of(names, fields)

    def texts(self, fields: Fields) -> Iterator[Fields]:
        """Yield fields with as many image tokens in the text as the model expects, then the fields unchanged."""
        images, token = fields.get("pixel_values"), self._config.number(*_IMAGE_TOKENS)
        count = self._config.positive("image_seq_length", "num_query_tokens", "mm_tokens_per_image")
        if images is not None and "input_ids" in fields and token is not None and count is not None:
            count *= images.shape[1] if images.ndim == 5 else 1
            ids = self.tokens((1, NUM_TOKENS + count))
            ids[:, 1 : 1 + count] = token
            yield {**fields, "input_ids": ids}
        yield fields

    def fractions(self, boxes: Tensor) -> Tensor:
        return self._sampler.floats(*boxes.shape) if self._sampler.device.type == "meta" else boxes / 1000

    def decoder_tokens(self) -> Tensor:
        """Draw a decoder's first tokens, one row per codebook."""
        shape, _ = self._documented.get("decoder_input_ids", ((1,), True))
        return self.tokens((shape[0] if len(shape) == 2 else 1, NUM_TOKENS // 2))

    def optional(self, fields: Fields) -> dict[str, Tensor]:
        """Return all other fields that can be drawn, since some forwards need fields with a default of None."""
        names = [
            name
            for name, parameter in self._parameters.items()
            if "Tensor" in str(parameter.annotation)
            and name not in SHAPES
            and (name in self._rules or not any(word in name for word in _NEVER))
        ]
        return self._of(names, fields)

    def tokens(self, shape: tuple[int, ...], second: bool = False) -> Tensor:
        """Draw ordinary tokens of the vocabulary and an end token; a ``second`` text uses the smallest vocabulary."""
        special = self._config.special_tokens()
        vocabulary = self._vocabulary_size()
        if second:
            vocabulary = min([vocabulary, *(size for size in self._config.values("vocab_size") if type(size) is int)])
        ordinary = [token for token in range(vocabulary) if token not in special] or list(range(vocabulary))
        drawn = self._sampler.integers(range(len(ordinary)), *shape)
        tokens = torch.tensor(ordinary, device=drawn.device)[drawn]
        end = self._config.number("eos_token_id")
        if end is not None and 0 <= end < vocabulary:
            tokens[..., -1] = end
        return tokens

    def _of(self, names: list[str], fields: Fields) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for name in names:
            if name in self._parameters and name not in fields:
                drawn = self.draw(name, {**fields, **made})
                if drawn is not None:
                    made[name] = drawn
        return made

    def _vocabulary_size(self) -> int:
        try:
            embedding = self._model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        except (AttributeError, NotImplementedError):
            embedding = None
        if isinstance(embedding, nn.Embedding):
            return embedding.num_embeddings
        return self._config.number("vocab_size") or 2

    def whole(self, values: list[Any]) -> Tensor:
        device = self._sampler.device
        return torch.tensor(values, device="cpu" if device.type == "meta" else device)

    def _mask(self, name: str, fields: Fields) -> Tensor | None:
        prefix = name.partition("attention_mask")[0] if "attention_mask" in name else name.partition("_mask")[0] + "_"
        if f"{prefix}input_ids" in fields:
            return self._kept(fields[f"{prefix}input_ids"].shape[:2])
        if prefix == "pixel_":
            images = fields.get("pixel_values")
            return None if images is None else self._kept(images.shape[-2:] if images.ndim == 4 else images.shape[:2])
        if prefix == "padding_":
            video = "videos" in name
            of = fields.get("pixel_values_videos" if video else "input_values")
            return None if of is None else self._kept(of.shape[1:2] if video else of.shape[-1:])
        of = fields.get(prefix[:-1], fields.get(f"{prefix}hidden_states"))
        return None if of is None or of.ndim < 2 else self._kept((self._frames(of),))

    def _kept(self, shape: tuple[int, ...]) -> Tensor:
        shape = shape if len(shape) > 1 and shape[0] == 1 else (1, *shape)
        return self._sampler.integers(range(1, 2), *shape)

    def _frames(self, features: Tensor) -> int:
        bins = self._config.number("num_mel_bins")
        transposed = features.ndim == 3 and features.shape[1] == bins and features.shape[2] != bins
        return features.shape[2 if transposed else 1]

    def _boxes(self, fields: Fields) -> Tensor | None:
        ids = fields.get("input_ids")
        # Empty boxes are valid.
        return None if ids is None else self._sampler.integers(range(1000), *ids.shape, 1).repeat(1, 1, 4)

    def _past_features(self, fields: Fields) -> Tensor | None:
        past = fields.get("past_values")
        numbers = [self._config.number("num_time_features"), self._config.number("num_dynamic_real_features")]
        width = sum(number for number in numbers if number is not None) if any(n is not None for n in numbers) else 1
        return None if past is None else self._sampler.floats(*past.shape[:2], width)

    def _future_values(self, fields: Fields) -> Tensor | None:
        past, length = fields.get("past_values"), self._config.positive("prediction_length")
        return None if past is None or length is None else self._sampler.floats(1, length, *past.shape[2:])

    def _future_features(self, fields: Fields) -> Tensor | None:
        past, length = fields.get("past_time_features"), self._config.positive("prediction_length")
        return None if past is None or length is None else self._sampler.floats(1, length, *past.shape[2:])

    def _categories(self, fields: Fields) -> Tensor | None:
        count = self._config.positive("num_static_categorical_features")
        return None if count is None else self._sampler.integers(range(1), 1, count)

    def _statics(self, fields: Fields) -> Tensor | None:
        return self._vector("num_static_real_features")

    def _vector(self, *names: str) -> Tensor | None:
        width = self._config.positive(*names)
        return None if width is None else self._sampler.floats(1, width)

    def _vectors(self, name: str) -> Tensor | None:
        names = ["encoder_hidden_size", "cross_attention_hidden_size"] if name.startswith("encoder") else []
        width = self._config.positive(*names) or self._config.positive("hidden_size", "d_model")
        return None if width is None else self._sampler.floats(1, NUM_TOKENS, width)

    def _patches_of_image(self, fields: Fields) -> Tensor | None:
        images, patch = fields.get("pixel_values"), self._config.side("patch_size")
        if images is None or patch is None or images.ndim < 2:
            return None
        return self.whole([[side // patch for side in images.shape[-2:]]])

    def _images_of_token(self, fields: Fields) -> Tensor | None:
        ids, images = fields.get("input_ids"), fields.get("pixel_values")
        return None if ids is None or images is None or images.ndim != 5 else self._kept((*ids.shape, images.shape[1]))

    def _places_of_image(self, fields: Fields) -> Tensor | None:
        ids, count = fields.get("input_ids"), self._config.positive("latent_query_num")
        if ids is None or count is None or "pixel_values" not in fields:
            return None
        places = torch.zeros_like(ids)
        places[:, 1 : 1 + count] = 1
        return places


def _ones(values: Tensor | None) -> Tensor | None:
    return None if values is None else torch.ones_like(values)


def _zeros(values: Tensor | None) -> Tensor | None:
    return None if values is None else torch.zeros_like(values, dtype=torch.int64, device=_valued(values))


def _valued(values: Tensor) -> torch.device:
    return torch.device("cpu") if values.is_meta else values.device
