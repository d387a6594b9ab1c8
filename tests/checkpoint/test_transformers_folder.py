"""What the command line writes of a transformers model that lost whole layers is a transformers checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from layerprune import UniversalLayerPruner, load_pruned
from layerprune.checkpoint.manifest import TensorRecord
from layerprune.checkpoint.transformers_folder import _record, save_vanilla
from layerprune.cli import app
from layerprune.errors import CheckpointError
from models.nets import run

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
IDS = torch.arange(10).reshape(2, 5)


def make(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=4, vocab_size=32, tie_word_embeddings=True)).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint as people have it: weights, configs, a tokenizer, and what belongs to the weights alone."""
    folder = tmp_path_factory.mktemp("source")
    model = make()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"the same weights again")
    (folder / "README.md").write_text("of the unpruned model")
    return folder


def command(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_block_pruning_writes_a_folder_that_transformers_loads_with_its_tokenizer(source, tmp_path):
    out = tmp_path / "out"
    done = command("prune", f"hf:{source}", "--granularity", "block", "--reduction", 0.3, "--out", out)
    assert done.exit_code == 0, done.output
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert model.config.num_hidden_layers == len(model.model.layers) < 4
    assert model.generation_config.max_new_tokens == 7
    assert AutoTokenizer.from_pretrained(out)("b a").input_ids == AutoTokenizer.from_pretrained(source)("b a").input_ids
    assert not {"pytorch_model.bin", "README.md"} & {path.name for path in out.iterdir()}

    assert command("verify", out).exit_code == 0
    loaded = load_pruned(out, factory=make)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(run(loaded, IDS).logits, run(model.eval(), IDS).logits)


def test_where_less_than_layers_leaves_the_folder_is_an_artefact_that_transformers_refuses(source, tmp_path):
    out = tmp_path / "out"
    done = command("prune", f"hf:{source}", "--granularity", "branch", "--reduction", 0.12, "--out", out)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "plan.json").read_text())["needs_layerprune"]
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(out)
    assert load_pruned(out, factory=make).config.num_hidden_layers == 4


def test_only_what_transformers_loads_is_saved_for_it(tmp_path):
    for model in (nn.Linear(1, 1), make()):
        with pytest.raises(CheckpointError, match="no transformers model that only whole layers left"):
            save_vanilla(model, tmp_path / "out")
    pruner = UniversalLayerPruner(make(), example_inputs=IDS, granularity="block")
    pruned = pruner.prune(max_param_reduction=0.3)
    with pytest.raises(CheckpointError, match="beside the weights of 'nobody/nothing' cannot be had"):
        save_vanilla(pruned, tmp_path / "out", source="nobody/nothing")
    assert not any(Path(tmp_path).iterdir())


def test_the_record_takes_the_names_that_the_files_have():
    told = {"order": {"a": (1, 0)}, "frozen": (), "empty": (), "training": False, "otherwise": ()}
    record = TensorRecord(tied={"b": "a", "c": "a", "e": "d"}, shared={}, transient=("t",), **told)
    found = _record({"a", "d", "t"}, record, {"b", "d"})
    assert found is not None
    assert found.tied == {"a": "b", "c": "b", "e": "d"}
    assert found.order == {}
    assert _record({"a", "d", "t"}, record, {"a"}) is None
    assert _record({"a", "d"}, record, {"a", "d", "fused"}) is None
