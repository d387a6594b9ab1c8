"""Example inputs for real architectures: tiny or weightless models of torchvision, timm and transformers."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from layerprune import UniversalLayerPruner
from layerprune.adapters import timm as timm_adapter
from layerprune.adapters.transformers import example_inputs as transformers_adapter
from layerprune.errors import InputsError
from layerprune.inputs import infer_inputs
from layerprune.modules import clone

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")


def attempt_on_fakes(model):
    """Attempts that run a fake copy of the model, meta tensors standing for CPU ones; counts them in ``.tries``."""
    mode = FakeTensorMode()

    def fake(tensor):
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    copy = clone(model, fake).eval()

    def attempt(inputs):
        attempt.tries += 1
        fakes = inputs.map(fake)
        try:
            with mode, torch.no_grad():
                copy(*fakes.args, **fakes.kwargs)
        except Exception as error:
            return error
        return None

    attempt.tries = 0
    return attempt


def attempt_really(model):
    """Attempts that run the model itself, for forwards that read values; counts them in ``.tries``."""

    def attempt(inputs):
        attempt.tries += 1
        try:
            with torch.no_grad():
                model(*inputs.args, **inputs.kwargs)
        except Exception as error:
            return error
        return None

    attempt.tries = 0
    return attempt


def candidates(model):
    yield from transformers_adapter.transformers_example_inputs(model)
    yield from timm_adapter.timm_example_inputs(model)


def inferred(model):
    attempt = attempt_on_fakes(model)
    return infer_inputs(model, attempt, candidates(model)), attempt.tries


def inferred_really(model):
    attempt = attempt_really(model)
    return infer_inputs(model, attempt, candidates(model)), attempt.tries


def shapes(inputs):
    return {name: tuple(value.shape) for name, value in inputs.kwargs.items() if isinstance(value, torch.Tensor)}


# ---- torchvision: no adapter, the first convolution tells ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (3, 224, 224)),
        ("vgg11_bn", (3, 224, 224)),
        ("densenet121", (3, 224, 224)),
        ("googlenet", (3, 224, 224)),
        ("inception_v3", (3, 224, 224)),
        ("vit_b_16", (3, 224, 224)),
        ("swin_t", (3, 224, 224)),
        ("r3d_18", (3, 16, 112, 112)),
        ("mvit_v1_b", (3, 16, 224, 224)),
    ],
)
def test_torchvision(name, shape):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    inputs, _ = inferred(model)
    assert tuple(inputs.args[0].shape) == (1, *shape)
    assert inputs.args[0].device.type == "meta"


def test_raft_takes_two_frames():
    with torch.device("meta"):
        model = torchvision.models.optical_flow.raft_small(weights=None)
    inputs, _ = inferred(model)
    assert [tuple(frame.shape) for frame in inputs.args] == [(1, 3, 224, 224)] * 2


# ---- timm: the model's own config ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("vit_tiny_patch16_224", {}, (3, 224, 224)),
        ("vit_tiny_patch16_224", {"img_size": 96, "in_chans": 1}, (1, 96, 96)),
        ("convnext_atto", {}, (3, 224, 224)),
        ("mixer_s32_224", {}, (3, 224, 224)),
        ("efficientnet_b1", {}, (3, 240, 240)),
        ("tresnet_m", {}, (3, 224, 224)),  # its first convolution reads 48 channels, after a space-to-depth
        ("swinv2_tiny_window8_256", {}, (3, 256, 256)),
        ("resnet10t", {"in_chans": 5}, (5, 176, 176)),
    ],
)
def test_timm(name, options, shape):
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    inputs, tries = inferred(model)
    assert tuple(inputs.args[0].shape) == (1, *shape)
    assert tries <= 4
    assert "timm" in inputs.origin or "img_size" in inputs.origin


# ---- transformers: the config and the signature ----------------------------------------------------------------------

_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 99}
_VISION = {**_TEXT, "image_size": 32, "patch_size": 8}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 99}
_BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 99, "max_position_embeddings": 64}
_BART |= {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")}
_WHISPER = {**_BART, "num_mel_bins": 20, "max_source_positions": 30, "max_target_positions": 16}
_WAV2VEC = {**_TEXT, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
_CLIP = {"text_config": dict(_TEXT), "vision_config": dict(_VISION), "projection_dim": 8}
_TEXT_SHAPES = {"input_ids": (1, 16), "attention_mask": (1, 16)}
_WHISPER_SHAPES = {"input_features": (1, 20, 60), "decoder_input_ids": (1, 8)}


def tiny(name, options):
    """A model of a transformers class with a small config and real weights."""
    cls = getattr(transformers, name)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    return cls(cls.config_class(**{**ids, **options})).eval()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("LlamaForCausalLM", {**_TEXT, "num_key_value_heads": 1}, _TEXT_SHAPES),
        ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 99}, _TEXT_SHAPES),
        ("BertModel", _TEXT, _TEXT_SHAPES),
        ("BertForSequenceClassification", {**_TEXT, "max_position_embeddings": 8}, {n: (1, 8) for n in _TEXT_SHAPES}),
        ("T5ForConditionalGeneration", _T5, {**_TEXT_SHAPES, "decoder_input_ids": (1, 8)}),
        ("BartModel", _BART, {**_TEXT_SHAPES, "decoder_input_ids": (1, 8)}),
        ("LayoutLMModel", _TEXT, {**_TEXT_SHAPES, "bbox": (1, 16, 4)}),
        ("ViTForImageClassification", _VISION, {"pixel_values": (1, 3, 32, 32)}),
        ("VideoMAEModel", {**_VISION, "num_frames": 4}, {"pixel_values": (1, 4, 3, 32, 32)}),
        ("ResNetModel", {"num_channels": 1}, {"pixel_values": (1, 1, 224, 224)}),
        ("Wav2Vec2Model", _WAV2VEC, {"input_values": (1, 16000)}),
        ("ASTModel", {**_TEXT, "num_mel_bins": 32, "max_length": 48}, {"input_values": (1, 48, 32)}),
        ("WhisperModel", _WHISPER, _WHISPER_SHAPES),
        ("CLIPModel", _CLIP, {**_TEXT_SHAPES, "pixel_values": (1, 3, 32, 32)}),
        ("PatchTSTModel", {"context_length": 24, "num_input_channels": 3}, {"past_values": (1, 24, 3)}),
    ],
)
def test_transformers(name, options, expected):
    model = tiny(name, options)
    inputs, tries = inferred(model)
    assert shapes(inputs) == expected
    assert tries <= 3
    assert inputs.origin.startswith("inferred: ")
    assert inputs.origin.endswith("from the transformers config")
    with torch.no_grad():
        model(**inputs.kwargs)  # the values are valid too, not the shapes alone


def test_a_head_that_looks_for_the_end_of_the_text_finds_it():
    model = tiny("BartForSequenceClassification", _BART)  # fakes cannot tell how many ends there are
    assert shapes(inferred_really(model)[0]) == _TEXT_SHAPES


_VL = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16, "patch_size": 4}
_SERIES = {"prediction_length": 6, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "num_time_features": 2}
_SERIES_SHAPES = {"past_values": (1, 13), "past_time_features": (1, 13, 2), "past_observed_mask": (1, 13)}
_XLNET = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "vocab_size": 99}
_DECISION = {"state_dim": 5, "act_dim": 3, "hidden_size": 16, "n_layer": 1, "n_head": 2}
_AUDIO = {"num_mel_bins": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_AUDIO |= {"intermediate_size": 16, "max_source_positions": 30}
_LXMERT = {**_TEXT, "l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 12}
_IDEFICS = {**_TEXT, "vision_config": {"embed_dim": 16, "image_size": 32, "patch_size": 8, "num_hidden_layers": 1}}
_IDEFICS["vision_config"] |= {"num_attention_heads": 2, "intermediate_size": 16}
_QFORMER = {**_TEXT, "encoder_hidden_size": 12, "cross_attention_frequency": 1}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        pytest.param(
            "Qwen2_5_VisionTransformerPretrainedModel",
            {**_VL, "window_size": 16, "fullatt_block_indexes": [1]},
            {"hidden_states": (64, 96), "grid_thw": (1, 3)},
            id="flat patches with their grid",
        ),
        pytest.param(
            "Siglip2VisionModel",
            {**_VISION, "num_patches": 16},
            {"pixel_values": (1, 16, 192), "spatial_shapes": (1, 2), "pixel_attention_mask": (1, 16)},
            id="patches with their sizes and mask",
        ),
        pytest.param(
            "TimeSeriesTransformerModel",
            {**_SERIES, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8},
            {**_SERIES_SHAPES, "future_values": (1, 6), "future_time_features": (1, 6, 2)},
            id="a past and a future",
        ),
        pytest.param("XLNetModel", _XLNET, _TEXT_SHAPES, id="no limit of positions"),
        pytest.param(
            "DecisionTransformerModel",
            _DECISION,
            {"states": (1, 16, 5), "actions": (1, 16, 3), "rewards": (1, 16, 1), "returns_to_go": (1, 16, 1)}
            | {"timesteps": (1, 16), "attention_mask": (1, 16)},
            id="shapes out of the docstring",
        ),
        pytest.param(
            "AudioFlamingo3Encoder",
            _AUDIO,
            {"input_features": (1, 20, 60), "input_features_mask": (1, 60)},
            id="a mask that is optional by the signature only",
        ),
        pytest.param(
            "LxmertModel",
            _LXMERT,
            {**_TEXT_SHAPES, "visual_feats": (1, 16, 12), "visual_pos": (1, 16, 4), "visual_attention_mask": (1, 16)},
            id="features that are optional by the signature only",
        ),
        pytest.param(
            "IdeficsModel",
            _IDEFICS,
            {**_TEXT_SHAPES, "pixel_values": (1, 2, 3, 32, 32), "image_attention_mask": (1, 16, 2)},
            id="several images in a text",
        ),
        pytest.param(
            "Blip2QFormerModel",
            _QFORMER,
            {"query_embeds": (1, 16, 16), "encoder_hidden_states": (1, 16, 12)}
            | {"attention_mask": (1, 16), "encoder_attention_mask": (1, 16)},
            id="hidden states of another model",
        ),
    ],
)
def test_fields_that_follow_from_others(name, options, expected):
    inputs, tries = inferred_really(tiny(name, options))
    assert shapes(inputs) == expected
    assert tries <= 8


def test_a_grid_has_values_for_a_model_without_weights():
    with torch.device("meta"):
        model = tiny(
            "Qwen2_5_VisionTransformerPretrainedModel", {**_VL, "window_size": 16, "fullatt_block_indexes": [1]}
        )
    inputs = UniversalLayerPruner(model).inputs
    assert inputs.kwargs["hidden_states"].device.type == "meta"
    assert inputs.kwargs["grid_thw"].tolist() == [[1, 8, 8]]


def test_a_text_holds_the_tokens_that_stand_for_its_images():
    config = transformers.LlavaConfig(
        text_config={**_TEXT, "model_type": "llama", "num_key_value_heads": 1},
        vision_config={**_VISION, "model_type": "clip_vision_model", "image_size": 32},
        image_token_id=98,
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    texts = [fields.kwargs["input_ids"] for fields in candidates(model) if "pixel_values" in fields.kwargs]
    assert (texts[0] == 98).sum() == 16
    together = next(fields for fields in candidates(model) if "pixel_values" in fields.kwargs)
    assert attempt_really(model)(together) is None


def test_what_no_name_tells_is_not_made_up():
    class Session(transformers.BertModel):
        def forward(self, session):
            return session.ids

    found = list(transformers_adapter.transformers_example_inputs(Session(transformers.BertConfig(**_TEXT))))
    assert all("dummy" in inputs.origin for inputs in found)


def test_a_forward_that_reads_values_of_weights_is_given_up_early_without_them():
    with torch.device("meta"):
        model = transformers.SuperPointForKeypointDetection(transformers.SuperPointConfig())
    attempt = attempt_on_fakes(model)
    with pytest.raises(InputsError, match="the meta device has none"):
        infer_inputs(model, attempt, candidates(model))
    assert attempt.tries <= 6


def test_the_cache_is_switched_off_where_there_is_one():
    with_cache = inferred(tiny("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 99}))[0]
    assert with_cache.kwargs["use_cache"] is False
    assert "use_cache" not in inferred(tiny("ViTForImageClassification", _VISION))[0].kwargs


def test_tokens_are_ordinary_ones_and_end_as_a_text_does():
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 3}
    model = transformers.BertModel(transformers.BertConfig(**{**_TEXT, "vocab_size": 6}, **special))
    ids = inferred(model)[0].kwargs["input_ids"][0].tolist()
    assert ids[-1] == 2
    assert set(ids[:-1]) == {4, 5}


def test_dummy_inputs_come_last():
    model = tiny("T5ForConditionalGeneration", _T5)
    origins = [inputs.origin for inputs in transformers_adapter.transformers_example_inputs(model)]
    assert origins[-1].endswith("transformers' dummy inputs")
    assert "dummy" not in "".join(origins[:-1])


def test_a_users_subclass_of_a_library_class_is_recognised():
    class Mine(transformers.BertModel):
        pass

    assert transformers_adapter.is_transformers_model(Mine(transformers.BertConfig(**_TEXT)))


# ---- what is no such model -------------------------------------------------------------------------------------------


def test_other_models_get_no_candidates():
    model = nn.Sequential(nn.Linear(3, 4))
    model.default_cfg = None
    assert list(candidates(model)) == []


def test_a_users_model_around_a_library_model_is_inferred_from_its_layers():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = transformers.BertModel(transformers.BertConfig(**_TEXT))
            self.head = nn.Linear(16, 2)

        def forward(self, input_ids, attention_mask):
            return self.head(self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])

    inputs, _ = inferred(Classifier())
    assert [tuple(tensor.shape) for tensor in inputs.args] == [(1, 8), (1, 8)]


def test_the_adapters_import_neither_library():
    code = (
        "import sys, layerprune.adapters.timm, layerprune.adapters.transformers\n"
        "assert not {'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
