"""What the rules of ``tiny.py`` get wrong, by model type: fields of the config, dotted for the configs inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_EFFICIENTNET = {
    "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320],
    "hidden_dim": 320,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.4,
}

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "align": {
        **{f"vision_config.{name}": value for name, value in _EFFICIENTNET.items()},
        "projection_dim": 80,
    },
    "bloom": {"hidden_size": 32, "n_layer": 4},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "efficientnet": _EFFICIENTNET,
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "levit": {"patch_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "mistral4": {"head_dim": 4},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "reformer": {"axial_pos_shape": [4, 4], "axial_pos_embds_dim": [16, 16]},
    "superpoint": {"keypoint_decoder_dim": 65},
    "vjepa2": {"frames_per_clip": 4, "crop_size": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "pp_lcnet": {"scale": 0.25},
    "pp_lcnet_v3": {"scale": 0.25},
    "pp_ocrv5_mobile_det": {"backbone_config.scale": 0.25},
}
