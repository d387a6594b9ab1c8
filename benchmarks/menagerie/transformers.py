"""transformers: every model type whose default config builds, and tiny models of those for which a tiny config runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from menagerie import tiny_inputs
from menagerie.entry import Batch, Entry
from menagerie.meta import on_meta
from menagerie.tiny import shrink
from menagerie.tiny_changes import CHANGES
from menagerie.transformers_left_out import NO_FULL, NO_PLAN
from torchvision_ops import declare_missing_ops

#: The tasks in whose class a type is built, the first that has it; none of them: the base model.
_TASKS = (
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "MASKED_LM",
    "CAUSAL_LM",
    "IMAGE_CLASSIFICATION",
    "OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION",
    "SEMANTIC_SEGMENTATION",
    "CTC",
)

#: Where the class of the first task does not build from the default config, the one to take.
_CLASSES = {
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
    "reformer": "ReformerModel",
    "wav2vec2-bert": "Wav2Vec2BertModel",
    "wav2vec2-conformer": "Wav2Vec2ConformerModel",
}

#: The default sections of these models' rotary embedding cover half of a head.
_HALF_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}

#: What a default config leaves open and its class needs.
_NEEDED: Mapping[str, Mapping[str, Any]] = {
    "autoformer": {"prediction_length": 24},
    "blip-2": {"qformer_config": {"use_qformer_text_input": True}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "glm46v": {"text_config": {"rope_parameters": _HALF_ROTARY}},
    "glm4v": {"text_config": {"rope_parameters": _HALF_ROTARY}},
    "glm4v_moe": {"text_config": {"head_dim": 128, "rope_parameters": _HALF_ROTARY}},
    "glm4v_moe_text": {"head_dim": 128, "rope_parameters": _HALF_ROTARY},
    "glm4v_text": {"rope_parameters": _HALF_ROTARY},
    "glm_image": {"text_config": {"rope_parameters": _HALF_ROTARY}},
    "glm_image_text": {"rope_parameters": _HALF_ROTARY},
    "glmga": {"text_config": {"rope_parameters": _HALF_ROTARY}},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "informer": {"prediction_length": 24},
    "instructblip": {"image_token_index": 31999},
    "instructblipvideo": {"video_token_index": 31999},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 48, "head_dim": 128},
    "pp_doclayout_v2": {"class_thresholds": [0.5, 0.5], "class_order": [0, 1]},
    "time_series_transformer": {"prediction_length": 24},
}

#: Types whose forwards read strides and kernel sizes from buffers of integers.
_SIZES_IN_BUFFERS = frozenset(
    [
        "encodec",
        "mimi",
        "mimi_decoder",
        "mimi_encoder",
        "pocket_tts_audio_tokenizer",
        "pocket_tts_audio_tokenizer_decoder",
        "pocket_tts_audio_tokenizer_encoder",
    ]
)


def _questions(model: nn.Module) -> dict[str, Tensor]:
    """Two questions of two options in a prompt: where they end, and of what types they are."""
    two = {"marks": [[8, 16]], "num_options": [[2, 2]], "question_type_ids": [[0, 1]]}
    return {"input_ids": torch.arange(16)[None], **{name: torch.tensor(values) for name, values in two.items()}}


#: What a forward takes that no name or docstring tells.
_PLAN_INPUTS = {"jev": _questions}


def entries() -> dict[str, Entry]:
    """Return an entry for each model type, by its name; builds nothing."""
    found: dict[str, Entry] = {}
    for kind, name in _classes().items():
        if kind in NO_PLAN:
            continue
        full = kind not in NO_FULL
        found[kind] = Entry(
            library="transformers",
            name=kind,
            family=kind,
            plan=partial(_plan, kind, name),
            plan_inputs=_PLAN_INPUTS.get(kind),
            full=partial(_full, kind, name) if full else None,
            inputs=_inputs if full else None,
        )
    return found


def _classes() -> dict[str, str]:
    """Return the name of the class to build for each model type that an auto class knows."""
    modeling_auto = _transformers().models.auto.modeling_auto
    every = {name: names for name, names in sorted(vars(modeling_auto).items()) if name.endswith("_MAPPING_NAMES")}
    kinds = every.pop("CONFIG_MAPPING_NAMES")
    mappings = [every[f"MODEL_FOR_{task}_MAPPING_NAMES"] for task in _TASKS]
    mappings += [every["MODEL_MAPPING_NAMES"], *every.values()]
    known = {kind: next((names[kind] for names in mappings if kind in names), None) for kind in kinds}
    single = {kind: name if isinstance(name, str) else name[0] for kind, name in known.items() if name is not None}
    return {kind: _CLASSES.get(kind, name) for kind, name in single.items()}


def _plan(kind: str, name: str) -> nn.Module:
    """Build the class from the type's default config, on the meta device."""
    transformers = _transformers()

    def build() -> nn.Module:
        return getattr(transformers, name)(transformers.CONFIG_MAPPING[kind](**_NEEDED.get(kind, {})))

    if kind in _SIZES_IN_BUFFERS:
        return on_meta(build, values=True)
    return on_meta(build).to("meta")  # torch.Tensor(…) in a constructor ignores the device


def _full(kind: str, name: str) -> nn.Module:
    """Build the class from a tiny config."""
    transformers = _transformers()
    model = getattr(transformers, name)(shrink(transformers.CONFIG_MAPPING[kind](), CHANGES.get(kind)))
    choose = getattr(model, "set_experts_implementation", None)
    if choose is not None and getattr(model.config, "_experts_implementation", None) is not None:
        choose("batched_mm")  # the grouped kernels refuse float64
    return model


def _inputs(model: nn.Module, batch: int, variant: int) -> Batch:
    return tiny_inputs.make(model, batch, variant)


def _transformers() -> ModuleType:
    """Import the library, when first needed."""
    declare_missing_ops()  # it imports torchvision
    import transformers

    transformers.logging.set_verbosity_error()  # it warns of tokens beyond the default vocabularies
    return transformers
