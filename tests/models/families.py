"""Tiny transformers models, one of each family that the block tests prune, save and load again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

_TEXT = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DECODER = {
    **_TEXT,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_ENCODER = {
    **_TEXT,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
_IMAGE = {**_ENCODER, "image_size": 16, "patch_size": 4}
_BART = {
    **_TEXT,
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 4,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_MOE = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
_GPT2 = {**_TEXT, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 64}
_WAVES = {
    **_ENCODER,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
    "mask_time_prob": 0.0,
}
_MAMBA = {**_TEXT, "hidden_size": 16, "num_hidden_layers": 4, "state_size": 4, "time_step_rank": 4}
_CLIP_PART = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}

#: Family → class, config class, sizes.
FAMILIES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**_DECODER, "use_sliding_window": True, "max_window_layers": 2, "sliding_window": 6},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _DECODER),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_DECODER, "sliding_window": 6}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_DECODER, "sliding_window": 6, "layer_types": _SLIDING}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_DECODER, "sliding_window": 6}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_DECODER, **_MOE}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _DECODER),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_DECODER, **_MOE, "mlp_only_layers": [1, 3]}),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **_DECODER,
            "head_dim": 4,
            "num_key_value_heads": 2,
            "first_k_dense_replace": 2,
            "moe_intermediate_size": 8,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {**_DECODER, "no_rope_layer_interval": 2}),
    "llama4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {**_DECODER, **_MOE, "intermediate_size_mlp": 24, "attention_chunk_size": 8, "interleave_moe_layer_step": 2},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _ENCODER),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            **_TEXT,
            "hidden_size": 16,
            "num_layers": 4,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 2]],
            "max_position_embeddings": 64,
            "window_size": 6,
        },
    ),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_ENCODER, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "falcon": ("FalconForCausalLM", "FalconConfig", _ENCODER),
    "bloom": ("BloomForCausalLM", "BloomConfig", {**_TEXT, "hidden_size": 16, "n_layer": 4, "n_head": 2}),
    "bert": ("BertForSequenceClassification", "BertConfig", _ENCODER),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {**_TEXT, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24},
    ),
    "albert": ("AlbertModel", "AlbertConfig", {**_ENCODER, "embedding_size": 8}),
    "deberta_v2": (
        "DebertaV2Model",
        "DebertaV2Config",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    ),
    "modernbert": (
        "ModernBertModel",
        "ModernBertConfig",
        {**_ENCODER, "local_attention": 6, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            **_TEXT,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 4,
            "num_decoder_layers": 4,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", _BART),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **_BART,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 64,
            "begin_suppress_tokens": None,
            "suppress_tokens": None,
        },
    ),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", _WAVES),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {
            "projection_dim": 8,
            "text_config": {**_CLIP_PART, **_TEXT, "num_hidden_layers": 4, "max_position_embeddings": 64},
            "vision_config": {**_CLIP_PART, "num_hidden_layers": 4, "image_size": 16, "patch_size": 4},
        },
    ),
    "siglip": (
        "SiglipModel",
        "SiglipConfig",
        {
            "text_config": {**_CLIP_PART, **_TEXT, "num_hidden_layers": 3, "max_position_embeddings": 64},
            "vision_config": {**_CLIP_PART, "num_hidden_layers": 4, "image_size": 16, "patch_size": 4},
        },
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", _IMAGE),
    "beit": ("BeitModel", "BeitConfig", _IMAGE),
    "dinov2": ("Dinov2Model", "Dinov2Config", _IMAGE),
    "swin": (
        "SwinModel",
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 4], "num_heads": [1, 2], "window_size": 2},
    ),
    "segformer": (
        "SegformerModel",
        "SegformerConfig",
        {"depths": [2, 3, 2, 2], "hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 2, 2], "image_size": 32},
    ),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [3, 3], "layer_type": "basic"},
    ),
    "convnext": (
        "ConvNextModel",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [3, 3], "num_stages": 2, "image_size": 32},
    ),
    "mamba": ("MambaForCausalLM", "MambaConfig", _MAMBA),
    "mamba2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {**_MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    ),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        {
            **_DECODER,
            "num_hidden_layers": 4,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": (
        "BambaForCausalLM",
        "BambaConfig",
        {
            **_DECODER,
            "attn_layer_indices": [2],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 4,
            "mamba_chunk_size": 4,
        },
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            **_DECODER,
            **_MOE,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "shared_expert_intermediate_size": 8,
        },
    ),
    "lfm2": ("Lfm2ForCausalLM", "Lfm2Config", {**_DECODER, "full_attn_idxs": [1, 3], "block_ff_dim": 24}),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        "FalconH1Config",
        {
            **_DECODER,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_ssm": 32,
            "mamba_n_groups": 1,
            "mamba_d_state": 4,
            "mamba_chunk_size": 4,
        },
    ),
}


def build(family: str, **more: Any) -> nn.Module:
    """A tiny model with random weights, in eval mode, its layers far enough from each other to tell them apart."""
    kind, config, sizes = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**sizes, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # a table of sines is made again on loading
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
