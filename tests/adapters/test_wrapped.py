"""Whole layers leave a transformers model whose layers another library has wrapped, as peft does."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from layerprune import UniversalLayerPruner, load_pruned
from layerprune.adapters.transformers.reference_model import forms
from layerprune.adapters.transformers.wrapped import unwrapped
from layerprune.errors import CheckpointError
from models.nets import run

IDS = torch.arange(10).reshape(2, 5)
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


def adapted():
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=4, vocab_size=32)).eval()
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(base, lora).eval()


def test_whole_layers_leave_a_peft_model_and_vanilla_loads_what_is_merged(tmp_path):
    model = adapted()
    pruner = UniversalLayerPruner(model, example_inputs=IDS, granularity="block")
    pruned = pruner.prune(groups=[g.name for g in pruner.groups if ".layers.1." in g.name])
    base = pruned.base_model.model
    assert base.config.num_hidden_layers == len(base.model.layers) == 3
    assert [layer.self_attn.layer_idx for layer in base.model.layers] == [0, 1, 2]
    assert {name for name, p in pruned.named_parameters() if p.requires_grad} == {
        name for name, _ in pruned.named_parameters() if "lora_" in name
    }
    by_hand = copy.deepcopy(model)
    layers = by_hand.base_model.model.model.layers
    by_hand.base_model.model.model.layers = nn.ModuleList([layers[0], layers[2], layers[3]])
    expected = by_hand(IDS, use_cache=False).logits
    assert torch.equal(run(pruned, IDS).logits, expected)
    with pruned.disable_adapter():
        assert not torch.allclose(run(pruned, IDS).logits, expected)

    with pytest.raises(CheckpointError, match=r"PeftModel.save_pretrained is refused"):
        pruned.save_pretrained(tmp_path / "adapter")
    pruner.save(tmp_path / "small")
    assert torch.equal(run(load_pruned(tmp_path / "small", factory=adapted), IDS).logits, expected)
    pruned.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(run(merged, IDS).logits, expected, atol=1e-5)


def test_what_is_merged_after_part_of_a_layer_left_is_not_saved_as_if_whole(tmp_path):
    pruner = UniversalLayerPruner(adapted(), example_inputs=IDS, granularity="branch", projections=False)
    names = [g.name for g in pruner.groups if g.can_remove and ".layers.1.mlp." in g.name]
    merged = pruner.prune(groups=names[:1]).merge_and_unload()
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM.save_pretrained is refused.*'base_model.model'"):
        merged.save_pretrained(tmp_path)


class Branched(nn.Module):
    """A layer, and what a library adds to it."""

    def __init__(self, *held):
        super().__init__()
        self.held = nn.ModuleList(held) if len(held) > 1 else held[0]
        self.more = nn.Linear(2, 2)


def test_a_module_stands_for_its_only_part_that_is_built_in_its_place():
    built = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3)))
    net = nn.Sequential(Branched(nn.Linear(2, 3)), nn.Sequential(Branched(nn.Linear(3, 3))))
    found = unwrapped(dict(net.named_modules()), forms(net), forms(built))
    assert found == {"": "", "0": "0.held", "1": "1", "1.0": "1.0.held"}
    other = nn.Sequential(Branched(nn.Linear(2, 4)), nn.Sequential(nn.Linear(3, 3)))
    found = unwrapped(dict(other.named_modules()), forms(other), forms(built))
    assert found["0"] == "0"  # nothing in it is like what is built: another model
    assert found["0.more"] == "0.more"
