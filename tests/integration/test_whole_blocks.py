"""Whole layers leave transformers models: vanilla transformers, without layerprune, loads what is left."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from layerprune import UniversalLayerPruner, load_pruned
from layerprune.adapters.transformers.reference_diff import Shortened, unlike
from layerprune.adapters.transformers.reference_model import ReferenceModel
from layerprune.edits import Shorten, TakePlace, name_before
from layerprune.errors import PlanError, SurgeryError
from layerprune.plan import PruningPlan
from layerprune.surgery import applied, operate
from models.families import FAMILIES, build
from models.nets import repeats
from models.reload_vanilla import generated
from oracle.checks import num_params

NUM_TOKENS = 10
REFUSED = ("albert",)  # one layer, called many times
NUM_PARTS = 4  # that run side by side


def inputs_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Two samples of what the family takes."""
    torch.manual_seed(1)
    kind, config = type(model).__name__, model.config
    text = {"input_ids": torch.randint(3, 40, (2, NUM_TOKENS))}
    side = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", 32)
    image = {"pixel_values": torch.randn(2, 3, side, side)}
    if kind.startswith("Whisper"):
        return {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": text["input_ids"][:, :5]}
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(2, 400)}
    if hasattr(config, "vision_config"):
        return text | image
    if model.main_input_name == "pixel_values":
        return image
    if config.is_encoder_decoder:
        return text | {"decoder_input_ids": text["input_ids"][:, :5]}
    return text


def pruner_of(model: nn.Module, granularity: str = "block") -> UniversalLayerPruner:
    return UniversalLayerPruner(model, example_inputs=inputs_of(model) | no_cache(model), granularity=granularity)


def no_cache(model: nn.Module) -> dict[str, Any]:
    return {"use_cache": False} if hasattr(model, "generate") and "Whisper" not in type(model).__name__ else {}


def generates(model: nn.Module) -> bool:
    return getattr(model, "can_generate", lambda: False)()


def state(model: nn.Module) -> dict[str, Any]:
    """All that surgery could change: the tree, who is in it, plain attributes and configs."""
    found: dict[str, Any] = {"modules": [(name, id(m)) for name, m in model.named_modules(remove_duplicate=False)]}
    for name, module in model.named_modules(remove_duplicate=False):
        found[name] = (list(vars(module)), list(module._modules), list(module._parameters))
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, str, float, list, tuple, type(None)))}
        found[f"{name} plain"] = copy.deepcopy(plain)
        if "config" in vars(module):
            found[f"{name} config"] = (id(module.config), list(vars(module.config)), module.config.to_dict())
    return found


# ---- saved, and loaded by vanilla transformers ---------------------------------------------------------------------


def saved(family: str, folder: Path) -> dict[str, Any]:
    """Prune a family's model to half, save it with what it computes, and return what it should be."""
    model = build(family)
    before = state(model)
    pruner = pruner_of(model)
    plan = pruner.plan(max_param_reduction=0.55)
    pruned = pruner.prune(plan=plan)
    assert state(model) == before, "the user's model has changed"
    assert plan.edits, "nothing could be removed"
    assert all(isinstance(edit, Shorten) for edit in plan.edits)
    assert not plan.needs_layerprune
    assert num_params(pruned) == plan.num_params_after < num_params(model)
    pruned.save_pretrained(folder)
    inputs = inputs_of(model)
    with torch.no_grad():
        outputs = [t for t in pruned(**inputs).to_tuple() if torch.is_tensor(t)]
    tokens = [generated(pruned, inputs, cached) for cached in (True, False)] if generates(model) else []
    torch.save({"inputs": inputs, "outputs": outputs, "tokens": tokens}, folder / "expected.pt")
    return {"num_params": plan.num_params_after, "tokens": tokens, "plan": plan}


def reloaded(root: Path) -> dict[str, Any]:
    """Load all that lies in a folder, in a process without layerprune."""
    tests = Path(__file__).parents[1]
    script = tests / "models" / "reload_vanilla.py"
    clean = {**os.environ, "PYTHONPATH": str(tests)}  # and nothing of this process's path: layerprune least of all
    ran = subprocess.run([sys.executable, str(script), str(root)], capture_output=True, text=True, env=clean)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def assert_reloads(families: list[str], root: Path) -> None:
    expected = {family: saved(family, root / family) for family in families}
    found = reloaded(root)
    assert found.keys() == expected.keys()
    wrong: dict[str, Any] = {}
    for family, want in expected.items():
        got = found[family]
        assert not got["layerprune"]
        ok = got["num_params"] == want["num_params"] and got["apart"] < 1e-5 and not got["wrong_keys"]
        tokens = [*want["tokens"], *got["tokens"]]
        if not ok or any(some != tokens[0] for some in tokens):
            wrong[family] = got | {"plan": str(want["plan"].edits)}
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=[pytest.mark.reliability] * (part > 0)) for part in range(NUM_PARTS)]
)
def test_vanilla_loads_what_is_left(part: int, tmp_path: Path) -> None:
    assert_reloads([family for family in FAMILIES if family not in REFUSED][part::NUM_PARTS], tmp_path)


# ---- what is refused, and why --------------------------------------------------------------------------------------


def reason_of(pruner: UniversalLayerPruner, name: str) -> str:
    group = next(group for group in pruner.groups if group.name == name)
    assert not group.can_remove
    return group.reason


def test_a_layer_that_shifts_a_rule_is_critical() -> None:
    """Jamba's config says every how many layers attention comes, and where it starts: no list could be written."""
    pruner = pruner_of(build("jamba"))
    reason = reason_of(pruner, "model.layers.1.self_attn.q_proj")
    assert reason.startswith("vanilla transformers would not load what is left: ")
    assert "JambaMambaDecoderLayer" in reason
    assert [removal.name for removal in pruner.removals] == ["model.layers.3 by its input"]


def test_a_layer_whose_place_matters_is_critical() -> None:
    """Swin shifts the windows of every second block of a stage; GPT-2 may divide by the number of the layer."""
    swin = pruner_of(build("swin"))
    assert "roll" in reason_of(swin, "encoder.layers.0.blocks.0.attention.q_proj")
    gpt2 = pruner_of(build("gpt2", scale_attn_by_inverse_layer_idx=True))
    assert "places of layers" in reason_of(gpt2, "transformer.h.1.attn.c_attn")
    assert [r.name for r in gpt2.removals] == ["transformer.h.3 by its input"]


def test_a_layer_called_several_times_is_critical() -> None:
    pruner = pruner_of(build("albert"))
    assert not pruner.removals
    assert "no element left" in reason_of(pruner, "encoder.albert_layer_groups.0.albert_layers.0.attention.query")


def test_a_layer_that_makes_what_others_read_is_critical() -> None:
    """T5's first block makes the position bias of all, which none of its arguments stands for."""
    pruner = pruner_of(build("t5"))
    assert "'decoder.block.0.layer.0' returns 2 tensors that others read" in reason_of(
        pruner, "decoder.block.0.layer.0.SelfAttention.o"
    )


def test_a_part_of_a_layer_is_no_block() -> None:
    """T5 keeps the parts of a block in a list, too."""
    pruner = pruner_of(build("t5"))
    assert all(len(edit.fqn.split(".")) == 2 for removal in pruner.removals for edit in removal.edits)
    assert "encoder.block.0.layer" in reason_of(pruner, "encoder.block.0.layer.1.DenseReluDense.wi")


def test_fewer_encoder_than_decoder_layers_of_t5_cannot_generate() -> None:
    """The library's own cache has then too few layers; together with decoder layers they may go."""
    pruner = pruner_of(build("t5"))
    assert "generation with a cache" in reason_of(pruner, "encoder.block.1.layer.0.SelfAttention.q")


def test_what_an_argument_left_out_is_left_out_again(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    config = BertConfig(**sizes, num_hidden_layers=3, max_position_embeddings=16)
    model = BertModel(config, add_pooling_layer=False).eval()
    tokens = {"input_ids": torch.arange(12).view(2, 6)}
    pruner = UniversalLayerPruner(model, example_inputs=tokens, granularity="block")
    pruned = pruner.prune(groups=["encoder.layer.1.output.dense"])
    assert len(pruned.encoder.layer) == pruned.config.num_hidden_layers == 2
    pruned.save_pretrained(tmp_path / "vanilla")
    pruner.save(tmp_path / "own")
    vanilla = BertModel.from_pretrained(tmp_path / "vanilla", add_pooling_layer=False).eval()
    own = load_pruned(tmp_path / "own", factory=lambda: BertModel(config, add_pooling_layer=False)).eval()
    with torch.no_grad():
        left = pruned(**tokens).last_hidden_state
        for loaded in (vanilla, own):
            assert loaded.pooler is None
            assert torch.equal(loaded(**tokens).last_hidden_state, left)


def test_what_a_module_of_the_model_holds_not_is_no_argument() -> None:
    model = build("bert")
    model.bert.encoder.layer[0].attention.output.LayerNorm = None
    with pytest.raises(SurgeryError, match=r"attention\.output\.LayerNorm' is another module"):
        operate(model, [Shorten(fqn="bert.encoder.layer", removed=(1,))])


def test_a_model_that_transformers_does_not_build_is_refused() -> None:
    model = build("llama")
    model.model.layers[2].mlp.act_fn = nn.Tanh()
    pruner = pruner_of(model)
    reason = "not what transformers builds from its config: 'model.layers.2.mlp.act_fn'"
    assert reason in reason_of(pruner, "model.layers.1.self_attn.q_proj")
    partial = pruner_of(model, "group")
    assert any(r.kind == "block" for r in partial.removals), "with stand-ins it still goes"


class PairsConfig:
    """Derives a list of layers, which can be read of an even number of them only."""

    model_type = "pairs"

    def __init__(self, num_layers: int, error: type[Exception] = ValueError) -> None:
        self.num_layers, self.error = num_layers, error

    @property
    def layer_types(self) -> list[str]:
        if self.num_layers % 2:
            raise self.error(f"{self.num_layers} layers are no pairs")
        return ["local", "global"] * (self.num_layers // 2)


def twin_with(config: PairsConfig) -> ReferenceModel:
    model = nn.Module()
    model.config = config
    return ReferenceModel(model, {})


LAST_OF_FOUR = Shortened(removed={"layers": (3,)}, sizes={"layers": 4})


@pytest.mark.parametrize(
    "error", [AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError]
)
def test_a_derived_list_that_can_no_longer_be_read_is_a_difference(error: type[Exception]) -> None:
    before, after = (twin_with(PairsConfig(number, error)) for number in (4, 3))
    assert unlike(before, after, LAST_OF_FOUR) == ["config.layer_types can no longer be read"]


def test_a_derived_list_that_could_never_be_read_is_no_difference() -> None:
    assert unlike(twin_with(PairsConfig(3)), twin_with(PairsConfig(3)), LAST_OF_FOUR) == []


def test_an_error_that_no_derived_list_should_raise_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        unlike(twin_with(PairsConfig(3, ZeroDivisionError)), twin_with(PairsConfig(3)), LAST_OF_FOUR)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Shorten(fqn="model.layers", removed=(9,)), "has 4 elements"),
        (Shorten(fqn="model.layers", removed=(0, 1, 2, 3)), "no element left"),
        (Shorten(fqn="model.layers.1.mlp", removed=(0,)), "no nn.ModuleList"),
        (Shorten(fqn="model.nothing", removed=(0,)), "no nn.ModuleList"),
        (TakePlace(fqn="model.layers.1.mlp", of="model.layers.0.self_attn"), "number of their place"),
    ],
)
def test_an_edit_that_does_not_fit_leaves_the_model_as_it_was(edit: Any, message: str) -> None:
    model = build("llama")
    before = state(model)
    with pytest.raises(SurgeryError, match=message):
        operate(model, [Shorten(fqn="model.layers", removed=(1,)), edit] if isinstance(edit, TakePlace) else [edit])
    assert state(model) == before


def test_containers_of_other_models_are_renumbered_plainly_and_back() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    first, _, last = model
    undo = operate(model, [Shorten(fqn="", removed=(1,))])
    assert list(model._modules.items()) == [("0", first), ("1", last)]
    undo()
    assert list(model._modules) == ["0", "1", "2"]
    with pytest.raises(SurgeryError, match="'' has 3 elements, not the numbers 3"):
        operate(model, [Shorten(fqn="", removed=(3,))])


# ---- config, undo, replay ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "swin", *repeats("gemma3", "gpt2", "deepseek_v3", "t5", "beit", "lfm2")])
def test_undo_restores_containers_places_and_config(family: str) -> None:
    model = build(family)
    pruner = pruner_of(model)
    before = state(model)
    for removal in pruner.removals:
        with applied(model, removal.edits):
            assert state(model) != before
        assert state(model) == before


def test_the_config_follows_everywhere() -> None:
    model = build("gemma3")
    pruned = pruner_of(model).prune(groups=["model.layers.1.self_attn.q_proj"])
    assert model.config.num_hidden_layers == 4
    assert pruned.config.num_hidden_layers == 3
    assert pruned.config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    assert pruned.config is not model.config
    assert {id(m.config) for m in pruned.modules() if hasattr(m, "config")} == {id(pruned.config)}
    assert [layer.self_attn.layer_idx for layer in pruned.model.layers] == [0, 1, 2]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    assert list(pruned.model.layers._modules) == ["0", "1", "2"]


def test_a_rule_becomes_a_number_or_a_list() -> None:
    dense = pruner_of(build("deepseek_v3")).prune(groups=["model.layers.1.mlp.up_proj"])
    assert dense.config.first_k_dense_replace == 1
    listed = pruner_of(build("qwen3_moe")).prune(groups=["model.layers.1.mlp.up_proj"])
    assert listed.config.mlp_only_layers == [2]


def test_a_list_of_all_places_loses_the_last_ones_not_those_of_the_layers_that_go() -> None:
    model = build("llama4", interleave_moe_layer_step=1)
    assert model.config.moe_layers == [0, 1, 2, 3]  # all have experts
    assert model.config.no_rope_layers == [1, 1, 1, 0]  # as its class makes it
    with applied(model, [Shorten(fqn="model.layers", removed=(0, 2))]):
        assert model.config.moe_layers == [0, 1]
        assert model.config.no_rope_layers == [1, 0]
        assert [layer.is_moe_layer for layer in model.model.layers] == [True, True]


def test_encoder_and_decoder_have_counts_of_their_own() -> None:
    model = build("bart")
    pruned = pruner_of(model).prune(groups=["model.decoder.layers.1.fc1", "model.decoder.layers.3.fc1"])
    assert (pruned.config.encoder_layers, pruned.config.decoder_layers) == (3, 2)
    assert len(pruned.model.decoder.layers) == 2
    clip = pruner_of(build("clip")).prune(groups=["vision_model.encoder.layers.1.mlp.fc1"])
    assert (clip.config.vision_config.num_hidden_layers, clip.config.text_config.num_hidden_layers) == (3, 4)


def test_in_place_the_users_own_config_is_changed() -> None:
    model = build("llama")
    config = model.config
    pruned = pruner_of(model).prune(groups=["model.layers.2.mlp.up_proj"], inplace=True)
    assert pruned is model
    assert model.config is config
    assert config.num_hidden_layers == 3


def test_a_plan_goes_to_json_and_replays_on_another_copy() -> None:
    pruner = pruner_of(build("gemma3"))
    plan = pruner.plan(max_param_reduction=0.5)
    assert len(plan.edits) == 1, "one edit for all layers of a container"
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    other = copy.deepcopy(build("gemma3"))
    replayed, pruned = again.apply(other), pruner.prune(plan=plan)
    inputs = inputs_of(other)
    with torch.no_grad():
        assert torch.equal(replayed(**inputs).logits, pruned(**inputs).logits)
    assert replayed.config.to_dict() == pruned.config.to_dict()
    with pytest.raises(PlanError, match="made for another model"):
        again.apply(replayed)


def test_a_model_within_another_module_is_shortened() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = build("bert").bert, nn.Linear(16, 2)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(input_ids).last_hidden_state[:, 0])

    pruner = UniversalLayerPruner(Wrapped(), example_inputs=torch.randint(3, 40, (2, 8)), granularity="block")
    pruned = pruner.prune(groups=["encoder.encoder.layer.2.intermediate.dense"])
    assert pruned.encoder.config.num_hidden_layers == len(pruned.encoder.encoder.layer) == 3


def test_names_before_containers_were_shortened() -> None:
    shortens = [Shorten(fqn="stages", removed=(0,)), Shorten(fqn="stages.2.blocks", removed=(1, 2))]
    assert name_before("stages.1.blocks.1.weight", shortens) == "stages.2.blocks.3.weight"
    assert name_before("stages.0.blocks.1.weight", shortens) == "stages.1.blocks.1.weight"
    assert name_before("head.weight", shortens) == "head.weight"


def test_a_stage_and_layers_of_another_are_answered_with_a_reason_not_with_a_crash():
    """Their counts lie in one list, which is the default: entries are lowered before any leaves, or all do."""
    from transformers import ConvNextV2Config, ConvNextV2Model

    model = ConvNextV2Model(ConvNextV2Config(hidden_sizes=[8, 8, 8, 8], image_size=64)).eval()
    edits = (Shorten(fqn="encoder.stages.3.layers", removed=(0, 1)), Shorten(fqn="encoder.stages", removed=(2,)))
    with pytest.raises(SurgeryError, match=r"config.depths would be \[3, 3, 1\]"):
        operate(model, edits)
    assert list(model.config.depths) == [3, 3, 9, 3]


def test_a_whole_layer_and_the_branch_of_another_leave_together():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(**sizes, num_hidden_layers=4, max_position_embeddings=16, initializer_range=0.5)
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    ids = torch.randint(3, 40, (2, NUM_TOKENS))
    pruner = UniversalLayerPruner(model, example_inputs={"input_ids": ids})
    dropout = "encoder.layer.1.output.dropout"  # what the sum has to leave out; it holds no parameters
    branch = next(i for i, r in enumerate(pruner.removals) if dropout in [e.fqn for e in r.edits if e.kind == "drop"])
    block = next(i for i, r in enumerate(pruner.removals) if [e.kind for e in r.edits] == ["shorten"] and "2" in r.name)
    joint = pruner._planner.joints.proven((branch, block))
    assert any(edit.kind == "shorten" for edit in joint.edits)
    with torch.no_grad():
        hidden = model.embeddings(ids)
        hidden = model.encoder.layer[0](hidden)
        one = model.encoder.layer[1]
        hidden = one.output.LayerNorm(one.attention(hidden)[0])
        expected = model.encoder.layer[3](hidden)
        for edits in (joint.edits, pruner._planner.joints.likely((block, branch)).edits):
            with applied(model, edits):
                assert torch.allclose(model(input_ids=ids).last_hidden_state, expected, atol=1e-5)
