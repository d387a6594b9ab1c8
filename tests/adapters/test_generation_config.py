"""What a generation config says of layers follows when layers leave, or the removal is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from layerprune import UniversalLayerPruner
from layerprune.adapters.transformers import generation_config
from layerprune.errors import SurgeryError
from layerprune.surgery import applied

HEADS = [[1, 1], [3, 0], [4, 3]]
SOUND, STARTED = torch.randn(2, 16, 60), torch.randint(4, 50, (2, 5))


def whisper():
    torch.manual_seed(0)
    counts = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 32))}
    counts |= {"decoder_layers": 5, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"vocab_size": 99, "num_mel_bins": 16, "d_model": 16, "max_source_positions": 30}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    quiet = {"suppress_tokens": None, "begin_suppress_tokens": None, "median_filter_width": 3}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **counts, **tokens, **quiet)).eval()
    told = model.generation_config
    told.alignment_heads, told.no_timestamps_token_id, told.is_multilingual = copy.deepcopy(HEADS), 50, False
    told.pad_token_id, told._from_model_config = 0, False
    return model


def dated(model):
    told = {"max_new_tokens": 4, "do_sample": False, "return_token_timestamps": True}
    return model.generate(input_features=SOUND, **told)["token_timestamps"]


@pytest.fixture(scope="module")
def pruner():
    inputs = {"input_features": SOUND, "decoder_input_ids": STARTED}
    return UniversalLayerPruner(whisper(), example_inputs=inputs, granularity="block")


def groups_of(pruner, *layers):
    return [g.name for g in pruner.groups if g.can_remove and any(g.name.startswith(f"{name}.") for name in layers)]


def test_alignment_heads_follow_the_decoder_layers_that_stay(pruner):
    names = groups_of(pruner, "model.decoder.layers.1", "model.decoder.layers.2", "model.encoder.layers.1")
    pruned = pruner.prune(groups=names)
    assert pruned.config.decoder_layers == 3
    # Of the layers 0, 3, 4 the last two are named; they are the second and the third now. That of layer 1 is gone.
    assert pruned.generation_config.alignment_heads == [[1, 0], [2, 3]]
    assert dated(pruned).shape[0] == 2
    assert whisper().generation_config.alignment_heads == HEADS == pruner._original.generation_config.alignment_heads


def test_layers_of_the_encoder_and_layers_behind_leave_the_heads_alone(pruner):
    pruned = pruner.prune(groups=groups_of(pruner, "model.encoder.layers.1"))
    assert pruned.config.encoder_layers == 1
    assert pruned.generation_config.alignment_heads == HEADS


def containers(**fields):
    """Two stacks, of which the second is the decoder's, and a generation config."""
    net = nn.Module()
    net.encoder, net.decoder = nn.Module(), nn.Module()
    net.encoder.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))
    net.decoder.layers = nn.ModuleList(nn.ModuleDict({"cross_attn": nn.Linear(1, 1)}) for _ in range(4))
    net.get_decoder = lambda: net.decoder
    net.generation_config = SimpleNamespace(**fields)
    return net


def test_no_entry_left_is_a_refusal_that_says_how_to_go_on():
    net = containers(alignment_heads=[[1, 0], [1, 2]])
    with pytest.raises(SurgeryError, match=r"would name no layer any more; delete .*del model.generation_config.align"):
        generation_config.check_generation_config(net, {"decoder.layers": [1]}, [])
    generation_config.check_generation_config(net, {"encoder.layers": [1]}, [])
    assert generation_config.generation_config_changes(net, {"encoder.layers": [1]}) == []
    generation_config.check_generation_config(net, {"decoder.layers": [0, 2]}, [])
    ((held, key, value),) = generation_config.generation_config_changes(net, {"decoder.layers": [0, 2]})
    assert (held is vars(net.generation_config), key, value) == (True, "alignment_heads", [[0, 0], [0, 2]])


def test_what_names_layers_in_another_form_is_refused_and_tokens_are_not_taken_for_layers():
    for value in (2, [1, 2]):
        with pytest.raises(SurgeryError, match="it is not known how it would follow"):
            generation_config.check_generation_config(
                containers(assistant_exit_layers=value), {"decoder.layers": [1]}, []
            )
        generation_config.check_generation_config(containers(assistant_exit_layers=value), {"decoder.layers": [3]}, [])
    others = containers(forced_decoder_ids=[[1, 50]], suppress_tokens=[1, 2], num_layers=4, dola_layers="high")
    generation_config.check_generation_config(others, {"decoder.layers": [0, 1]}, ["decoder.layers.1"])
    assert generation_config.generation_config_changes(others, {"decoder.layers": [0, 1]}) == []


def test_attention_to_the_encoder_that_a_listed_layer_is_counted_by_stays():
    net = containers(alignment_heads=[[2, 0]])
    for name in ("decoder.layers.1.cross_attn", "decoder.layers.2"):
        with pytest.raises(SurgeryError, match=f"a stand-in would be left at '{name}', and generation_config.align"):
            generation_config.check_generation_config(net, {}, [name])
    generation_config.check_generation_config(
        net, {}, ["decoder.layers.3.cross_attn", "encoder.layers.1", "decoder.layers.1.fc1"]
    )


def test_the_heads_come_back_when_the_edit_is_taken_back(pruner):
    model = whisper()
    removal = next(r for r in pruner.removals if r.name.startswith("model.decoder.layers.2 "))
    with applied(model, removal.edits):
        assert model.generation_config.alignment_heads == [[1, 1], [2, 0], [3, 3]]
    assert model.generation_config.alignment_heads == HEADS
