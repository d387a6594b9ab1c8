"""The architectures that CI checks in full: about forty that between them hold every mechanism once."""

from __future__ import annotations

from collections.abc import Mapping

SUBSET: Mapping[str, tuple[str, ...]] = {
    "torchvision": (
        "resnet18", "googlenet", "inception_v3", "densenet121", "shufflenet_v2_x0_5", "mobilenet_v3_small",
        "regnet_y_400mf", "lraspp_mobilenet_v3_large",
    ),
    "timm": (
        "swin_tiny_patch4_window7_224", "maxvit_pico_rw_256", "coatnet_pico_rw_224", "mobilevitv2_050",
        "res2net50_14w_8s", "cspdarknet53", "mixnet_s", "nf_regnet_b0", "dpn48b", "fastvit_t8", "edgenext_xx_small",
        "mixer_s32_224", "levit_128s", "efficientformer_l1", "coat_tiny", "pvt_v2_b0", "xcit_nano_12_p8_224",
        "cait_xxs24_224",
    ),
    "transformers": (
        "llama", "qwen3", "gemma3_text", "mixtral", "gpt2", "bert", "albert", "t5", "bart", "whisper", "clip", "mamba",
        "jamba", "deberta-v2", "vit",
    ),
}  # fmt: skip
