"""Tiny configs of transformers models: the default config, each field reduced by its name and its meaning.

A config is built anew from its reduced fields, so that its class derives and validates what follows from them. Equal
widths stay equal, since the reduced width depends on the width alone; per-layer lists are sampled at the same layers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

LAYERS = 4
VOCABULARY = 99
_FIRST_TOKEN = 90  # token ids from here on are moved: they may lie outside the vocabulary
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depth", "num_blocks")
_MROPE = re.compile(r"glm(4|46)v|glm_image|glm_ocr|qwen2(_5)?_(vl|omni)|paddleocr")  # sections where a config says none
_ZERO = re.compile(r"layerdrop|layer_drop|^mask_(time|feature)_prob|^apply_spec_augment$")


def shrink(config: Any, changes: Mapping[str, Any] | None = None) -> Any:
    """Return a tiny config of the same class; ``changes`` by field, dotted for configs inside, win over the rules."""
    return _Shrinker().shrink(config, dict(changes or {}))


def width(value: int) -> int:
    """Reduce a number of channels; small ones, as of colours, stay."""
    return 32 if value >= 128 else 16 if value >= 48 else 8 if value > 16 else value


def _at_most(limit: int) -> Callable[[int], int]:
    return lambda value: min(value, limit)


def _power(limit: int) -> Callable[[int], int]:
    """The largest power of two that is no more than the value and the limit, so that heads divide widths."""
    return lambda value: 1 << (min(value, limit).bit_length() - 1) if value > 0 else value


def _fixed(small: int, threshold: int | None = None) -> Callable[[int], int]:
    """``small`` for values from the threshold on, which is ``small`` itself if not given."""
    return lambda value: small if value >= (small if threshold is None else threshold) else value


#: What a field's name says about its numbers: the first pattern that is found decides.
_RULES: tuple[tuple[re.Pattern[str], Callable[[int], int]], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"codebook_size$", _at_most(64)),  # powers of two
        (r"focal_|2d_position|type_vocab|kernel|stride|dilation|padding|ratio|factor|coefficient|cost", int),
        (r"_rate$|merge_size|points$", int),
        (r"vocab|num_embeddings$", _at_most(VOCABULARY)),
        (r"(period|step|interval|every_n_layers|window_pattern|attention_frequency|layer_group_size)$", _at_most(2)),
        (r"layer_offset$|first_k_dense|num_dense_layers|layer_start_index", _at_most(1)),
        (r"layers?$|^depth$|n?_?blocks$|layer_end_index", _at_most(LAYERS)),
        (r"(per_tok|per_token|topk|moe_k|top_k)$", _at_most(2)),
        (r"^topk_group$", _at_most(1)),
        (r"^n_group$|expert_group$", _at_most(2)),
        (r"experts?$|expert_num$", _at_most(4)),
        (r"rope_head_dim$|rotary_dim$", _fixed(4)),
        (r"qk_head_dim$", _fixed(12)),
        (r"(head_dim|d_kv|dim_head|head_size|d_head|kv_channels)$", _fixed(8)),
        (r"(key_value|kv).*heads?$|heads_kv$", _power(2)),
        (r"mamba.*heads?$", _at_most(8)),
        (r"heads?$|heads_per_stage$", _power(4)),
        (r"patch_size$", _fixed(8, 7)),
        (r"window", _fixed(4, 7)),
        (r"(positions?|position_embeddings|n_ctx|seq_len|seq_length|context_length|max_length|pos_emb)$", _at_most(64)),
        (r"moe_intermediate|expert.*(intermediate|hidden)", _at_most(16)),
        (r"intermediate|ffn|d_ff$|dff$|dim_ff|mlp_(hidden_)?dim|n_inner|feed_?forward|_inner$", _at_most(48)),
        (r"mel_bins|n_mels|mel_dim|input_feat", _fixed(16, 64)),
        (r"rank$|_r$", _at_most(16)),
        (r"pos_embedding_groups$|num_groups$|n_groups$", _power(4)),
        (r"num_conv_pos_embeddings$|latents$|queries$|query_tokens$|detection_tokens$|num_tokens$", _at_most(8)),
        (r"(size|dims?|channels?|width|hidden|features|filters|units|planes|sizes|d_model|n_embd|state)$|^d_", width),
    )
)


class _Shrinker:
    """Reduces one config and those inside it; one special token is the same one in all of them."""

    def __init__(self) -> None:
        self._tokens: dict[int, int] = {}

    def shrink(self, config: Any, changes: Mapping[str, Any]) -> Any:
        """Return a tiny config of the same class."""
        if config.model_type == "timm_backbone":
            return self._resnet(config)
        layers, defaults = self._layers(config), _defaults(type(config))
        fields: dict[str, Any] = {}
        for name in inspect.signature(type(config).__init__).parameters:
            stored = type(config).attribute_map.get(name, name)
            value = vars(config).get(stored)
            inside = {key.partition(".")[2]: item for key, item in changes.items() if key.startswith(f"{name}.")}
            if name in changes:
                fields[name] = changes[name]
            elif hasattr(value, "model_type"):
                fields[name] = self.shrink(value, inside)
            elif not name.startswith("_") and value is not None:
                small = self._reduce(name, value, layers, config)
                if type(small) is not type(value) or small != value or value != defaults.get(stored):
                    fields[name] = small
        fields |= self._outputs(config, layers, defaults)
        return type(config)(**fields | {key: item for key, item in changes.items() if "." not in key})

    def _layers(self, config: Any) -> tuple[int, ...]:
        """Return the layers that stay: spread evenly, yet with one of each kind that the per-layer lists name."""
        found = (vars(config).get(name) for name in _LAYER_COUNTS)
        count = next((value for value in found if type(value) is int), 0)
        chosen = {round(i * (count - 1) / (LAYERS - 1)) for i in range(LAYERS)} if count > LAYERS else set(range(count))
        lists = [value for value in vars(config).values() if _is_per_layer(value, count) and isinstance(value[0], str)]
        kinds = list(zip(*lists, strict=True)) if lists else []
        for kind in dict.fromkeys(kinds):
            if kind not in {kinds[i] for i in chosen}:
                spare = [i for i in sorted(chosen) if [kinds[j] for j in chosen].count(kinds[i]) > 1]
                chosen = (chosen - set(spare[-1:])) | {kinds.index(kind)} if spare else chosen
        return (*sorted(chosen), count)  # the last is how many there were

    def _reduce(self, name: str, value: Any, layers: tuple[int, ...], config: Any) -> Any:
        """Reduce one field."""
        *kept, count = layers
        if _ZERO.search(name) and isinstance(value, (bool, int, float)):
            return type(value)(0)
        if isinstance(value, Mapping):
            return self._mapping(name, value, config)
        if isinstance(value, (list, tuple)):
            if _is_per_layer(value, count):
                value = type(value)(value[i] for i in kept)
            elif count > LAYERS and _are_layers(name, value, count):
                return type(value)(dict.fromkeys(min(LAYERS - 1, i * LAYERS // count) for i in value))
            return type(value)(self._reduce(name, item, (0,), config) for item in value)
        return self._number(name, value, config) if type(value) is int else value

    def _number(self, name: str, value: int, config: Any) -> int:
        if re.search(r"(_id|_ids|_index|_idx|_tokens?_id)$", name):
            return value if value < _FIRST_TOKEN else self._token(value)
        if name in ("image_size", "img_size", "pretrain_image_size", "crop_size", "train_size"):
            return _fixed(64 if _is_pyramid(config) else 32)(value)
        if name in ("depths", "stage_numb_of_layers", "num_block_repeats", "blocks_per_stage"):
            return min(value, 2)
        if "window_size" in name and _is_pyramid(config):
            return min(value, 2)  # the last stage's map is as small
        if re.search(r"(key_value|kv).*heads?$", name) and value == vars(config).get("num_attention_heads"):
            return min(value, 4)
        rule = next((rule for pattern, rule in _RULES if pattern.search(name)), int)
        return rule(value)

    def _token(self, value: int) -> int:
        """Move a special token into the vocabulary, from its end downwards."""
        return self._tokens.setdefault(value, VOCABULARY - 1 - len(self._tokens))

    def _mapping(self, name: str, value: Mapping[str, Any], config: Any) -> dict[str, Any]:
        """Reduce a dict: sizes of images, and the parameters of rotary embeddings, of one kind of layer or of each."""
        small: dict[str, Any] = {}
        sections = [2, 1, 1] if value.get("partial_rotary_factor", 1.0) == 1.0 else [1, 1, 0]
        for key, item in value.items():
            if key == "mrope_section":  # they sum up to half of the head's rotated dimensions
                small[key] = sections
            elif key in ("short_factor", "long_factor"):
                small[key] = list(item[:4])
            elif key == "original_max_position_embeddings":
                small[key] = 32
            elif key in ("height", "width", "shortest_edge", "longest_edge"):
                small[key] = self._number("image_size", item, config)
            elif isinstance(item, Mapping):
                small[key] = self._mapping(name, item, config)
            else:
                small[key] = item
        if name == "rope_parameters" and _MROPE.search(config.model_type):
            small.setdefault("mrope_section", sections)
        return small

    def _outputs(self, config: Any, layers: tuple[int, ...], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return which stages a backbone gives out, where that is not its class's default."""
        stages, count = vars(config).get("_out_indices"), layers[-1]
        if not stages or list(stages) == list(defaults.get("_out_indices") or []):
            return {}
        if count <= LAYERS or _is_pyramid(config):
            return {"out_indices": list(stages)}
        return {"out_indices": list(range(max(1, LAYERS - len(stages) + 1), LAYERS + 1))}

    def _resnet(self, config: Any) -> Any:
        """A backbone of this library in the place of timm's, whose sizes no config tells."""
        from transformers import ResNetConfig

        stages = list(vars(config).get("_out_indices") or vars(config).get("out_indices") or [4])
        tiny = {"embedding_size": 8, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
        return ResNetConfig(**tiny, out_indices=stages)


@cache
def _defaults(cls: type[Any]) -> Mapping[str, Any]:
    """Return what the class chooses by itself."""
    try:
        return vars(cls())
    except Exception:  # some need more than their defaults
        return {}


def _is_per_layer(value: Any, count: int) -> bool:
    return isinstance(value, (list, tuple)) and count > 1 and len(value) == count


def _are_layers(name: str, value: Sequence[Any], count: int) -> bool:
    """Whether a list names layers by their numbers."""
    names = re.search(r"(indices|indexes|idxs|layers|hook_ids|layer_ids)$", name)
    return names is not None and all(type(item) is int and 0 <= item <= count for item in value)


def _is_pyramid(config: Any) -> bool:
    """Whether a config is of a network whose stages halve the image again and again."""
    listed = ("depths", "hidden_sizes", "embed_dims", "stage_configs", "backbone_config", "block_configs", "num_stages")
    return any(vars(config).get(name) is not None for name in listed)
