"""transformers' model types that are left out, and why."""

from __future__ import annotations

from collections.abc import Mapping

#: Types without an entry. Parts of other models without an auto class of their own are none either.
NO_PLAN: Mapping[str, str] = {
    kind: reason
    for reason, kinds in {
        "the default config leaves None what the class needs": (
            "chameleon deepseek_ocr2 diffusion_gemma dots1 emu3 granite4_vision hunyuan_vl hunyuan_vl_text "
            "perception_lm pp_ocrv5_server_det pp_ocrv6_medium_det qwen4_exp qwen4_exp_text sapiens2"
        ),
        "the default config lacks a field that the class reads": (
            "cohere_compass cohere_compass_text dbrx moonshine_streaming qwen3_omni_moe t5gemma2_encoder"
        ),
        "the default config contradicts itself": "aya_vision gemma4_assistant gemma4_unified_assistant vitmatte",
        "needs natten, which is not installed": "dinat",
        "needs torchaudio, which is not installed": "higgs_audio_v2_tokenizer",
        "needs detectron2, which is not installed": "layoutlmv2",
        "names no timm model by default; timm is a library of its own here": "timm_backbone",
        "its class is not exported": "voxtral_realtime_text",
    }.items()
    for kind in kinds.split()
}

#: Types at plan depth only.
NO_FULL: Mapping[str, str] = {
    kind: reason
    for reason, kinds in {
        "no inputs that are inferred fit the tiny config": (
            "audioflamingo3_encoder autoformer blip-2 blt bros chmv2 clap clvp decision_transformer "
            "efficientloftr gemma4_audio granite_speech5_ctc granite_speech5_encoder idefics informer kosmos-2 "
            "layoutlmv3 lightglue lilt lw_detr lxmert minicpm_ocr_vision minicpmv4_7_vision muse_spark_audio "
            "musicgen musicgen_melody pix2struct pp_doclayout_v2 pp_lcnet_v4 pp_ocrv6_small_det "
            "pp_ocrv6_small_rec pp_ocrv6_tiny_rec sam sam3_tracker sam_hq siglip2 step3p7 superglue "
            "time_series_transformer tvp univnet xcodec xcodec2 xlnet"
        ),
        "the rules yield a config that does not build": (
            "bridgetower csm depth_pro ernie4_5_vl_moe fast_vlm fun_asr_nano gemma3n glm5_next glm5_next_text "
            "kyutai_speech_to_text mimi mimi_decoder mistral_large4 mistral_large4_text molmo2 neomme "
            "pocket_tts_audio_tokenizer pocket_tts_audio_tokenizer_decoder seggpt vibevoice_asr"
        ),
        "has no forward": "bark glm_image_vqmodel qwen2_5_omni",
        "takes inputs that are not inferred": (
            "blip_2_qformer fun_asr_nano_encoder gemma3n_audio gemma4_vision instructblip instructblipvideo jev "
            "muse_glimmer_assistant nemotron3_5_transcribe_word_timestamp oneformer pi0 qwen3_asr_encoder "
            "siglip2_vision_model timesfm"
        ),
        "computes in float32 inside, which fails in float64": (
            "canine dab-detr fastspeech2_conformer fastspeech2_conformer_with_hifigan fsmt inkling2 inkling2_text "
            "mra prophetnet slanet slanext xglm"
        ),
        "takes flattened patches with their grid": (
            "cohere_compass_vision cosmos3_edge_vision exaone4_5_vision glm4v_moe_vision glm4v_vision "
            "glm5_next_vision glm_image_vision glm_ocr_vision hunyuan_vl_vision inkling2_vision kimi_k25_vision "
            "lfm3_vl_vision muse_glimmer_vision muse_spark_vision qwen2_5_vl_vision qwen3_5_moe_vision "
            "qwen3_5_vision qwen3_vl_moe_vision qwen3_vl_vision qwen4_exp_vision video_llama_3_vision"
        ),
        "the tiny config is not small": (
            "dots3_note dots3_note_text edgetam edgetam_video edgetam_vision_model gemma3n_vision "
            "inkling_mm_model janus neucodec omdet-turbo pe_audio_video pe_audio_video_encoder pe_video "
            "pe_video_encoder sam2 sam2_hiera_det_model sam2_video sam2_vision_model timm_wrapper uvdoc "
            "uvdoc_backbone vibevoice vibevoice_acoustic_tokenizer_decoder vibevoice_acoustic_tokenizer_encoder"
        ),
        "its forward takes a session, not tensors": "sam3_tracker_video sam3_video",
        "draws random numbers in eval mode": "vibevoice_acoustic_tokenizer vilt vit_mae vits",
    }.items()
    for kind in kinds.split()
}
