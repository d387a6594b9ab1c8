"""What a class writes to build its model again is refused where it would build other layers than there are."""

import copy
import gc
import inspect
import json
import pickle
import weakref

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, Trainer, TrainingArguments

from layerprune import PruningPlan, UniversalLayerPruner, allow_marked_saving, load_pruned, save_pruned
from layerprune.errors import CheckpointError, PlanError
from models.nets import linear, randomised, rows, run

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
IDS = torch.arange(10).reshape(2, 5)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = linear(8, 16), linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Hubbed(nn.Module, PyTorchModelHubMixin):
    """A user's own class with the mixin of huggingface_hub, which loads weights without asking for all of them."""

    def __init__(self, depth: int = 3):
        super().__init__()
        self.body = nn.Sequential(linear(), *(Residual() for _ in range(depth)), linear())

    def forward(self, x):
        return self.body(x)


class System(nn.Module):
    """A network without a saving method of its own around one that has it."""

    def __init__(self):
        super().__init__()
        self.net, self.head = Hubbed(), nn.Sequential(linear(), Residual(), linear())

    def forward(self, x):
        return self.head(self.net(x))


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=4, vocab_size=32, **more)).eval()


def pruned_llama(*groups, granularity="group"):
    pruner = UniversalLayerPruner(llama(), example_inputs=IDS, granularity=granularity)
    return pruner.prune(groups=list(groups))


@pytest.fixture(scope="module")
def gapped():
    """A language model without the MLP of one layer, which no config can say."""
    return pruned_llama("model.layers.1.mlp.up_proj")


@pytest.fixture
def hubbed():
    return UniversalLayerPruner(randomised(Hubbed()), example_inputs=rows()).prune(groups=["body.2.up"])


def test_what_a_class_would_rebuild_otherwise_is_refused_with_the_call_to_make(gapped, hubbed, tmp_path):
    for model, name in ((gapped, "LlamaForCausalLM"), (hubbed, "Hubbed")):
        with pytest.raises(
            CheckpointError, match=rf"{name}.save_pretrained is refused.*layerprune.save_pruned"
        ) as told:
            model.save_pretrained(tmp_path / "vanilla")
        assert len(str(told.value)) <= 320
        with pytest.raises(CheckpointError, match=r"push_to_hub is refused.*Call layerprune.push_to_hub"):
            model.push_to_hub("me/small")
    assert not any(tmp_path.iterdir())


def test_without_the_refusal_a_reload_would_be_silently_wrong(hubbed, tmp_path):
    """The fault that the refusal is for: the class's own pair of methods says nothing and returns another network."""
    Hubbed.save_pretrained(hubbed, tmp_path / "vanilla")
    again = Hubbed.from_pretrained(tmp_path / "vanilla")
    assert run(again, rows()).shape == run(hubbed, rows()).shape
    assert not torch.allclose(run(again, rows()), run(hubbed, rows()))


def test_the_model_stays_the_users_own_in_all_else(gapped, tmp_path):
    twin = copy.deepcopy(gapped)
    assert type(twin) is LlamaForCausalLM
    assert isinstance(twin, LlamaForCausalLM)
    assert twin.state_dict().keys() == gapped.state_dict().keys()
    for other in (twin, pickle.loads(pickle.dumps(gapped)), torch.compile(gapped, backend="eager")):
        assert torch.equal(run(other, IDS).logits, run(gapped, IDS).logits)
        with pytest.raises(CheckpointError, match="save_pretrained is refused"):
            other.save_pretrained(tmp_path)
    torch.save(gapped, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    with pytest.raises(CheckpointError, match="save_pretrained is refused"):
        again.save_pretrained(tmp_path)
    save_pruned(again, tmp_path / "small")
    loaded = load_pruned(tmp_path / "small", factory=llama)
    assert torch.equal(run(loaded, IDS).logits, run(gapped, IDS).logits)
    with pytest.raises(CheckpointError, match="save_pretrained is refused"):
        loaded.save_pretrained(tmp_path)


def test_whole_layers_of_a_transformers_model_are_saved_by_its_own_method(tmp_path):
    pruner = UniversalLayerPruner(llama(), example_inputs=IDS, granularity="block")
    pruned = pruner.prune(max_param_reduction=0.3)
    assert len(pruned.model.layers) < 4
    assert inspect.ismethod(pruned.save_pretrained)
    pruned.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(run(again, IDS).logits, run(pruned, IDS).logits)


def test_whole_layers_are_no_less_refused_where_another_class_rebuilds_them(tmp_path):
    """The mixin rebuilds from its own arguments, not from the config of the transformers model inside."""

    class Wrapped(nn.Module, PyTorchModelHubMixin):
        def __init__(self):
            super().__init__()
            self.text = LlamaModel(LlamaConfig(**SIZES, num_hidden_layers=4, vocab_size=32))

        def forward(self, ids):
            return self.text(ids, use_cache=False)[0]

    pruner = UniversalLayerPruner(Wrapped(), example_inputs=IDS, granularity="block")
    pruned = pruner.prune(max_param_reduction=0.3)
    assert pruned.text.config.num_hidden_layers < 4
    with pytest.raises(CheckpointError, match=r"Wrapped.save_pretrained is refused"):
        pruned.save_pretrained(tmp_path)
    pruned.text.save_pretrained(tmp_path)
    again = LlamaModel.from_pretrained(tmp_path)
    assert torch.equal(run(again, IDS)[0], run(pruned.text, IDS)[0])


def test_a_part_is_refused_by_its_place_and_a_part_that_is_whole_is_not(tmp_path):
    system = randomised(System())
    pruner = UniversalLayerPruner(system, example_inputs=rows())
    pruned = pruner.prune(groups=["net.body.2.up"])
    with pytest.raises(CheckpointError, match="of the whole System, of which this is 'net'"):
        pruned.net.save_pretrained(tmp_path / "net")
    other = pruner.prune(groups=["head.1.up"])
    other.net.save_pretrained(tmp_path / "net")
    assert torch.equal(run(Hubbed.from_pretrained(tmp_path / "net"), rows()), run(system.net, rows()))


def test_an_edit_in_place_that_fails_leaves_the_methods_free(tmp_path):
    model = Hubbed()
    plan = UniversalLayerPruner(model, example_inputs=rows()).plan(groups=["body.2.up"])
    with pytest.raises(PlanError):
        plan.model_copy(update={"num_params_after": 1}).apply(model, inplace=True)
    assert inspect.ismethod(model.save_pretrained)
    plan.apply(model, inplace=True)
    with pytest.raises(CheckpointError):
        model.save_pretrained(tmp_path)


# ---- the setting: marked --------------------------------------------------------------------------------------------


def test_marked_saving_writes_what_only_layerprune_loads(gapped, tmp_path):
    pruned = allow_marked_saving(copy.deepcopy(gapped))
    for i, model in enumerate((pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)))):
        model.save_pretrained(tmp_path / str(i))
        assert json.loads((tmp_path / str(i) / "config.json").read_text())["model_type"] == "llama"
        PruningPlan.from_json((tmp_path / str(i) / "layerprune" / "plan.json").read_text())
        with pytest.raises(OSError, match=r"no file named model.safetensors"):
            LlamaForCausalLM.from_pretrained(tmp_path / str(i))
        loaded = load_pruned(tmp_path / str(i), factory=llama)
        assert torch.equal(run(loaded, IDS).logits, run(gapped, IDS).logits)
    with pytest.raises(CheckpointError, match="push_to_hub is refused"):
        pruned.push_to_hub("me/small")


def test_a_copy_of_a_marked_model_saves_its_own_weights(hubbed, tmp_path):
    twin = copy.deepcopy(allow_marked_saving(hubbed))
    with torch.no_grad():
        twin.body[0].weight.zero_()
    twin.save_pretrained(tmp_path / "twin")
    assert torch.equal(run(load_pruned(tmp_path / "twin", factory=Hubbed), rows()), run(twin, rows()))
    with pytest.raises(FileNotFoundError):
        Hubbed.from_pretrained(tmp_path / "twin")


def test_marked_saving_holds_no_model_alive(hubbed):
    net = copy.deepcopy(allow_marked_saving(hubbed))
    gone = weakref.ref(net)
    gc.collect()
    gc.disable()
    try:
        del net
        assert gone() is None
    finally:
        gc.enable()


def test_marked_saving_refuses_what_would_mislead(hubbed, tmp_path):
    allow_marked_saving(hubbed)
    with pytest.raises(CheckpointError, match="other tensors than the model's own"):
        hubbed.save_pretrained(tmp_path, state_dict={"body.0.weight": torch.zeros(8, 8)})
    (tmp_path / "model.safetensors").write_bytes(b"old")
    with pytest.raises(CheckpointError, match="would be taken for the weights of this Hubbed"):
        hubbed.save_pretrained(tmp_path)
    hubbed.save_pretrained(tmp_path / "new", is_main_process=False)
    assert not (tmp_path / "new").exists()


def test_what_saves_itself_rightly_is_left_to_do_so(tmp_path):
    net = allow_marked_saving(Hubbed())
    net.save_pretrained(tmp_path)
    assert torch.equal(run(Hubbed.from_pretrained(tmp_path), rows()), run(net, rows()))


@pytest.mark.parametrize("marked", [False, True])
def test_the_trainer_of_transformers_saves_marked_or_stops(gapped, tmp_path, marked):
    model = copy.deepcopy(gapped)
    if marked:
        allow_marked_saving(model)
    told = {"max_steps": 1, "save_steps": 1, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True}
    data = [{"input_ids": ids, "labels": ids} for ids in IDS]
    trainer = Trainer(model, TrainingArguments(str(tmp_path), disable_tqdm=True, **told), train_dataset=data)
    if not marked:
        with pytest.raises(CheckpointError, match="save_pretrained is refused"):
            trainer.train()
        return
    trainer.train()
    loaded = load_pruned(tmp_path / "checkpoint-1", factory=llama)
    assert torch.equal(run(loaded, IDS).logits, run(model.eval(), IDS).logits)
