"""A pruned model goes into a folder and comes back bit for bit, whatever holds its tensors."""

import copy
import json
import os
import stat
from collections import OrderedDict
from importlib.metadata import version
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from layerprune import PruningPlan, UniversalLayerPruner, load_pruned, quick_prune, save_pruned
from layerprune.errors import CheckpointError, PlanError
from layerprune.modules import named_tensors
from layerprune.plan import plans_of
from models.nets import ExampleModel, Net, Photograph, image, linear, randomised, rows, run, tokens


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.up, self.down = linear(width, 16), linear(16, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def residuals(depth=3):
    return nn.Sequential(linear(), *(Residual() for _ in range(depth)), linear())


def tied():
    """The head's weight is the stem's, as in a language model."""
    net = Net(
        lambda net, x: net.head(net.body(net.stem(x))),
        stem=linear(),
        body=nn.Sequential(Residual(), Residual()),
        head=linear(),
    )
    net.head.weight = net.stem.weight
    return net


def shared():
    """One module, called twice, of two names."""
    twin = Residual()
    return nn.Sequential(linear(), twin, Residual(), twin, linear())


def one_memory():
    """Two parameters in one memory, which are not one object."""
    net = residuals()
    net[3].up.weight = nn.Parameter(net[1].up.weight.data)
    return net


class Rotary(nn.Module):
    """A table that is computed when the module is made, and not saved with it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(8.0).sin(), persistent=False)

    def forward(self, x):
        return x + self.table


def rotary():
    return nn.Sequential(linear(), Rotary(), Residual(), Residual(), linear())


class Hidden(nn.Module):
    """A table that no registry knows."""

    def __init__(self):
        super().__init__()
        self.tables = {"one": [torch.arange(8.0).cos()]}

    def forward(self, x):
        return x * self.tables["one"][0]


def hidden():
    return nn.Sequential(linear(), Hidden(), Residual(), Residual(), linear())


def with_values_at_build():
    """Reads a value when it is made, which a tensor on the meta device has none of."""
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
    return nn.Sequential(linear(), nn.Dropout(rates[2]), Residual(), Residual(), linear())


def weight_normed():
    net = residuals()
    for block in net[1:4]:
        weight_norm(block.up)
    return net


def spectral_normed():
    net = residuals()
    spectral_norm(net[0])
    return net


def old_weight_normed():
    net = residuals()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(net[0])
    return net


def recurrent():
    lstm = nn.LSTM(8, 8, batch_first=True)
    return Net(
        lambda net, x: net.head(net.body(net.lstm(x)[0])),
        lstm=lstm,
        body=nn.Sequential(Residual(), Residual()),
        head=linear(),
    )


def half():
    return residuals().bfloat16()


def frozen():
    net = residuals()
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    return net


MAKES = [
    residuals, tied, shared, one_memory, rotary, hidden, with_values_at_build, weight_normed, spectral_normed,
    old_weight_normed, recurrent, half, frozen,
]  # fmt: skip


def inputs(model, batch=3):
    dtype = next(model.parameters()).dtype
    return (tokens if isinstance(model, Net) and hasattr(model, "lstm") else rows)(batch).to(dtype)


def pruned_of(make):
    model = randomised(make())
    return model, UniversalLayerPruner(model, example_inputs=inputs(model)).prune(max_param_reduction=0.5)


def tensors(model):
    return dict(named_tensors(model))


def assert_same(loaded, saved):
    """The same tensors under the same names, bit for bit, tied where they were, of the same dtype and needs."""
    one, other = tensors(loaded), tensors(saved)
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert type(tensor) is type(other[name]), name
        assert tensor.requires_grad == other[name].requires_grad, name
        assert tensor.stride() == other[name].stride(), name
        assert torch.equal(tensor, other[name]), name
    assert [(a, b) for a, b in pairwise(one) if one[a] is one[b]] == [
        (a, b) for a, b in pairwise(other) if other[a] is other[b]
    ]
    assert len({id(t) for t in one.values()}) == len({id(t) for t in other.values()})
    modes = [(name, module.training) for name, module in loaded.named_modules()]
    assert modes == [(name, module.training) for name, module in saved.named_modules()]


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_what_is_loaded_is_what_was_saved(make, tmp_path):
    model, pruned = pruned_of(make)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    before = Photograph(pruned)
    save_pruned(pruned, tmp_path / "small")
    assert Photograph(pruned).difference(before) == ""
    state = torch.get_rng_state()
    loaded = load_pruned(tmp_path / "small", factory=make)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is type(pruned)
    assert_same(loaded, pruned)
    assert torch.equal(run(loaded, inputs(model)), run(pruned, inputs(model)))


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_an_instance_of_any_weights_will_do_and_stays_as_it_is(make, tmp_path):
    model, pruned = pruned_of(make)
    save_pruned(pruned, tmp_path / "small")
    other = randomised(make(), seed=5)
    before = Photograph(other)
    loaded = load_pruned(tmp_path / "small", model=other)
    assert Photograph(other).difference(before) == ""
    assert_same(loaded, pruned)
    assert torch.equal(run(loaded, inputs(model)), run(pruned, inputs(model)))
    mine = {tensor.untyped_storage().data_ptr() for tensor in tensors(other).values()}
    assert mine.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in tensors(loaded).values())


def test_a_factory_is_called_without_memory_where_that_can_be(tmp_path):
    _, pruned = pruned_of(residuals)
    save_pruned(pruned, tmp_path / "small")
    made = []
    load_pruned(tmp_path / "small", factory=lambda: made.append(residuals()) or made[-1])
    assert [next(model.parameters()).is_meta for model in made] == [True]


def test_a_factory_that_needs_values_is_called_again_with_them(tmp_path):
    _, pruned = pruned_of(hidden)
    save_pruned(pruned, tmp_path / "small")
    made = []
    load_pruned(tmp_path / "small", factory=lambda: made.append(hidden()) or made[-1])
    assert [next(model.parameters()).is_meta for model in made] == [True, False]


def test_sharing_of_memory_comes_back(tmp_path):
    model = randomised(one_memory())
    pruned = UniversalLayerPruner(model, example_inputs=rows()).prune(groups=["2.up"])
    first, last = pruned.get_submodule("1.up"), pruned.get_submodule("3.up")
    last.weight = nn.Parameter(first.weight.data)
    save_pruned(pruned, tmp_path / "small")
    assert sum(t.numel() for t in load_file(tmp_path / "small" / "model.safetensors").values()) < sum(
        p.numel() for p in pruned.parameters()
    )
    loaded = load_pruned(tmp_path / "small", factory=residuals)
    first, last = loaded.get_submodule("1.up"), loaded.get_submodule("3.up")
    assert last.weight is not first.weight
    assert last.weight.data_ptr() == first.weight.data_ptr()


def test_weights_may_change_after_pruning(tmp_path):
    """Trained, cast, untied, a bias where none was, none where one was: the weights are those of the file."""
    make = lambda: nn.Sequential(nn.Linear(8, 8, bias=False), Residual(), Residual(), linear())  # noqa: E731
    pruned = UniversalLayerPruner(randomised(make()), example_inputs=rows()).prune(max_param_reduction=0.6)
    with torch.no_grad():
        pruned[0].weight.mul_(2)
    pruned[0].bias = nn.Parameter(torch.randn(8))
    pruned[-1].bias = None
    pruned.double().train()
    pruned[-1].eval()
    save_pruned(pruned, tmp_path / "small")
    loaded = load_pruned(tmp_path / "small", factory=make)
    assert_same(loaded, pruned)
    assert torch.equal(loaded(rows().double()), pruned(rows().double()))


def test_ties_may_change_after_pruning(tmp_path):
    _, untied = pruned_of(tied)
    untied.head.weight = nn.Parameter(untied.head.weight.detach() * 2)
    save_pruned(untied, tmp_path / "untied")
    assert_same(load_pruned(tmp_path / "untied", factory=tied), untied)
    _, again = pruned_of(tied)
    again.head.bias = again.stem.bias
    save_pruned(again, tmp_path / "again")
    loaded = load_pruned(tmp_path / "again", factory=tied)
    assert loaded.head.bias is loaded.stem.bias
    assert_same(loaded, again)


def test_the_order_of_dimensions_in_memory_stays(tmp_path):
    model = randomised(ExampleModel())
    pruned = quick_prune(model, 0.3, example_inputs=image()).to(memory_format=torch.channels_last)
    save_pruned(pruned, tmp_path / "small")
    loaded = load_pruned(tmp_path / "small", factory=ExampleModel)
    assert loaded.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(loaded, pruned)


def test_a_model_in_another_dtype_will_do(tmp_path):
    _, pruned = pruned_of(half)
    save_pruned(pruned, tmp_path / "small")
    assert_same(load_pruned(tmp_path / "small", factory=residuals), pruned)


def test_large_weights_are_written_in_several_files(tmp_path):
    _, pruned = pruned_of(residuals)
    save_pruned(pruned, tmp_path / "small", max_shard_bytes=600)
    names = sorted(path.name for path in (tmp_path / "small").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert len(names) > 2
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(pruned))
    assert set(index["weight_map"].values()) == set(names)
    assert_same(load_pruned(tmp_path / "small", factory=residuals), pruned)


def test_a_model_pruned_twice_keeps_both_plans_as_one(tmp_path):
    model = randomised(residuals(4))
    once = UniversalLayerPruner(model, example_inputs=rows()).prune(groups=["1.up"])
    twice = UniversalLayerPruner(once, example_inputs=rows()).prune(groups=["3.up"])
    save_pruned(twice, tmp_path / "small")
    assert sorted(path.name for path in (tmp_path / "small").glob("plan*")) == ["plan.json"]
    loaded = load_pruned(tmp_path / "small", factory=lambda: residuals(4))
    assert_same(loaded, twice)
    save_pruned(loaded, tmp_path / "again")
    assert_same(load_pruned(tmp_path / "again", factory=lambda: residuals(4)), twice)


def test_a_model_that_nothing_is_known_of_needs_its_plan(tmp_path):
    _, pruned = pruned_of(residuals)
    with pytest.raises(CheckpointError, match="it is not pruned"):
        save_pruned(residuals(), tmp_path / "small")
    with pytest.raises(CheckpointError, match="or a part of what was"):
        save_pruned(pruned[1], tmp_path / "small")
    assert not any(tmp_path.iterdir())
    bare = nn.Sequential(OrderedDict(pruned.named_children()))
    save_pruned(bare, tmp_path / "small", plan=plans_of(pruned))
    assert_same(load_pruned(tmp_path / "small", factory=residuals), bare)


def test_the_pruner_saves_what_it_pruned_with_what_was_measured(tmp_path):
    pruner = UniversalLayerPruner(randomised(residuals()), example_inputs=rows())
    pruned = pruner.prune(max_param_reduction=0.4)
    assert pruner.save(tmp_path / "small", figures={"accuracy": 0.5}) == tmp_path / "small"
    manifest = json.loads((tmp_path / "small" / "manifest.json").read_text())
    assert manifest["figures"] == {"accuracy": 0.5}
    assert manifest["num_params"] == sum(p.numel() for p in pruned.parameters())
    assert manifest["versions"]["torch"] == version("torch")
    plan = PruningPlan.from_json((tmp_path / "small" / "plan.json").read_text())
    assert plan.apply(residuals())[0].weight.shape == (8, 8)


# ---- what cannot be saved or loaded ----------------------------------------------------------------------------------


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"scale": 2}


def test_what_safetensors_has_no_form_for_is_refused_by_name(tmp_path):
    _, pruned = pruned_of(residuals)
    for change, message in (
        (lambda net: net.to("meta"), "'0.weight' is on the meta device"),
        (
            lambda net: setattr(net[0], "weight", nn.Parameter(torch.eye(8).to_sparse())),
            "'0.weight' is no plain tensor",
        ),
        (lambda net: net.__setitem__(0, Extra(8, 8)), "'0' .Extra. keeps extra state"),
    ):
        (plan,) = plans_of(pruned)
        twin = copy.deepcopy(pruned)
        change(twin)
        with pytest.raises(CheckpointError, match=message):
            save_pruned(twin, tmp_path / "small", plan=plan)
    with pytest.raises(CheckpointError, match="figure 'loss'"):
        save_pruned(pruned, tmp_path / "small", figures={"loss": float("nan")})
    with pytest.raises(CheckpointError, match="max_shard_bytes is 0"):
        save_pruned(pruned, tmp_path / "small", max_shard_bytes=0)
    assert not any(tmp_path.iterdir())


def test_another_plan_than_the_models_own_is_refused(tmp_path):
    model = randomised(residuals())
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    pruned, other = pruner.prune(groups=["1.up"]), pruner.plan(groups=["2.up"])
    with pytest.raises(CheckpointError, match="the plan takes '2' out, and this Sequential still has it"):
        save_pruned(pruned, tmp_path / "small", plan=other)


@pytest.fixture
def saved(tmp_path):
    _, pruned = pruned_of(residuals)
    return save_pruned(pruned, tmp_path / "small")


def wider():
    net = residuals()
    net[4] = linear(8, 9)
    return net


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, CheckpointError, "give either model=.*or factory="),
        ({"model": residuals(), "factory": residuals}, CheckpointError, "give either"),
        ({"model": "residuals"}, CheckpointError, "got str"),
        ({"factory": lambda: None}, CheckpointError, "got NoneType"),
        ({"factory": wider}, PlanError, r"'4' is \(Linear weight\(9, 8\), bias\(9\)\), in the plan's model"),
        ({"factory": lambda: residuals(2)}, PlanError, "'3' is .Linear .*in the plan's model .Residual"),
        ({"factory": lambda: residuals(4)}, PlanError, "'4' is .Residual.*in the plan's model .Linear"),
        ({"factory": ExampleModel}, PlanError, "not for this ExampleModel"),
    ],
)
def test_another_model_is_refused_with_what_differs(saved, arguments, error, message):
    with pytest.raises(error, match=message):
        load_pruned(saved, **arguments)


def test_the_users_own_error_comes_through(saved):
    def broken():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        load_pruned(saved, factory=broken)


def test_what_was_added_after_pruning_has_to_be_there_when_loading(tmp_path):
    _, pruned = pruned_of(residuals)
    pruned.add_module("scale", linear())
    save_pruned(pruned, tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"holds 'scale.(weight|bias)' of shape .*, for which .* no place"):
        load_pruned(tmp_path / "small", factory=residuals)


def test_a_head_that_was_changed_after_pruning_is_refused_by_its_shape(tmp_path):
    _, pruned = pruned_of(residuals)
    pruned[-1] = linear(8, 9)
    save_pruned(pruned, tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"'4.weight' of shape \(9, 8\), in the pruned model it is \(8, 8\)"):
        load_pruned(tmp_path / "small", factory=residuals)


@pytest.mark.parametrize("granularity", ["group", "block"])
def test_a_language_model_comes_back_with_its_ties_its_config_and_its_generation(tmp_path, granularity):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}

    def make():
        return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=5, vocab_size=64, tie_word_embeddings=True))

    model = randomised(make()).to(torch.bfloat16)
    pruned = UniversalLayerPruner(model, granularity=granularity).prune(max_param_reduction=0.4)
    save_pruned(pruned, tmp_path / "small")
    loaded = load_pruned(tmp_path / "small", factory=make)
    assert_same(loaded, pruned)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.config.num_hidden_layers == len(loaded.model.layers) == pruned.config.num_hidden_layers
    ids = torch.arange(10).reshape(2, 5)
    assert torch.equal(run(loaded, ids).logits, run(pruned, ids).logits)
    told = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, "max_new_tokens": 4}
    assert torch.equal(loaded.generate(ids, **told), pruned.generate(ids, **told))


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_all_files_have_the_mode_that_the_process_gives_new_ones(mask, tmp_path):
    _, pruned = pruned_of(residuals)
    before = os.umask(mask)
    try:
        save_pruned(pruned, tmp_path / "small")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "small").iterdir()}
    assert set(modes) == {"manifest.json", "model.safetensors", "plan.json"}
    assert set(modes.values()) == {0o666 & ~mask}
