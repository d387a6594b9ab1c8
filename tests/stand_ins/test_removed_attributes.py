"""Husks: parents that read a removed module's attributes in passing go on, torch's own transformer layers above all."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.edits import Drop, Pass
from layerprune.errors import CaptureError, DroppedTensorError
from layerprune.stand_ins import REMOVED_VALUE, DroppedBranch
from layerprune.stand_ins.removed_attributes import RemovedModule
from layerprune.surgery import applied
from models.nets import Net, linear, randomised, rows, run, tokens


class Tagger(nn.Module):
    """torch's own encoder with padding: in eval mode it packs the tokens into nested tensors and fuses its layers."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.stem = linear()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
        self.head = linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = self.encoder(self.stem(x), src_key_padding_mask=padding)
        return self.head(x.masked_fill(padding[..., None], 0))


def _inputs(batch: int = 2) -> dict[str, Tensor]:
    padding = torch.zeros(batch, 5, dtype=torch.bool)
    padding[0, 3:] = True
    return {"x": tokens(batch), "padding": padding}


_SUBLAYERS = [f"encoder.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn", "linear1", "linear2")]


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_sublayers_of_torchs_encoder_are_removed_one_by_one(norm_first: bool) -> None:
    model = randomised(Tagger(norm_first))
    pruner = UniversalLayerPruner(model, example_inputs=_inputs())
    assert {group.name for group in pruner.groups if group.can_remove} == set(_SUBLAYERS)
    attention = next(r for r in pruner.removals if r.groups == ("encoder.layers.1.self_attn",))
    with applied(model, attention.edits):
        found = run(model, **_inputs(3))
    assert torch.allclose(found, _without_attention(model, **_inputs(3)), atol=1e-6)


def _without_attention(model: Tagger, x: Tensor, padding: Tensor) -> Tensor:
    """The second layer without its attention, by hand; the rest on the way that takes no nested tensors."""
    one, two = model.encoder.layers
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            x = one(model.stem(x), src_key_padding_mask=padding)
            if two.norm_first:
                x = x + two.linear2(two.linear1(two.norm2(x)).relu())
            else:
                x = two.norm1(x)
                x = two.norm2(x + two.linear2(two.linear1(x).relu()))
            return model.head(x.masked_fill(padding[..., None], 0))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Bare(nn.Module):
    """torch's own encoder, whose padded tokens come out as zeros from its nested path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = linear(), linear(8, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x), src_key_padding_mask=padding))


def test_padded_tokens_stay_zeros_where_a_part_of_the_first_layer_goes() -> None:
    """The encoder asks the first layer's weights whether it may pack tokens: that one part is gone changes nothing."""
    model = randomised(Bare()).eval()
    pruner = UniversalLayerPruner(model, example_inputs=_inputs())
    of_the_first = [r for r in pruner.removals if any(g.startswith("encoder.layers.0.") for g in r.groups)]
    assert {group for removal in of_the_first for group in removal.groups} == set(_SUBLAYERS[:3])
    for removal in pruner.removals:
        flag = model.encoder.layers[0].activation_relu_or_gelu
        with applied(model, removal.edits):
            found = run(model, **_inputs(3))
            alone = run(model, **{key: one[:1, :3] for key, one in _inputs(3).items()})
        assert torch.allclose(found[0, 3:], model.head.bias.expand(2, 3)), removal
        assert torch.allclose(found[0, :3], alone[0], atol=1e-5), removal
        assert model.encoder.layers[0].activation_relu_or_gelu == flag == 1


def test_a_layer_without_a_part_is_not_run_as_one_fused_operation() -> None:
    model = randomised(Bare()).eval()
    without = UniversalLayerPruner(model, example_inputs=_inputs()).prune(groups=["encoder.layers.0.self_attn"])
    x = tokens()
    one, two = model.encoder.layers
    with torch.no_grad():
        y = one.norm1(model.stem(x))
        y = two(one.norm2(y + one.linear2(one.linear1(y).relu())))
        assert torch.allclose(without(x, None), model.head(y), atol=1e-5)


def test_what_fakes_cannot_do_unwatched_is_proven_on_real_tensors_and_the_plan_says_so() -> None:
    notes = UniversalLayerPruner(Tagger(), example_inputs=_inputs()).notes
    assert any(note.startswith("proven on real tensors, because fake ones failed") for note in notes)


def test_of_a_model_on_the_meta_device_it_cannot_be_proven() -> None:
    with pytest.raises(CaptureError, match="give it real weights"):
        UniversalLayerPruner(Tagger().to("meta"), example_inputs=_inputs())


class Peeking(nn.Module):
    """Looks at a part's settings and weights before it calls the part."""

    def __init__(self, peek: str) -> None:
        super().__init__()
        self.peek = peek
        self.stem, self.branch, self.head = linear(), nn.Sequential(linear(), nn.ReLU()), linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        layer = self.branch[0] if isinstance(self.branch, nn.Sequential) else getattr(self.branch, "0")
        if self.peek == "width":
            assert layer.in_features == 8
        elif self.peek == "weight":
            assert len([layer.weight, layer.bias]) == 2
        elif self.peek == "dtype":
            x = x.to(layer.weight.dtype)
        elif self.peek == "weights":
            x = x * layer.weight.norm()
        elif self.peek == "call":
            x = layer(x)
        return self.head(x + self.branch(x))


@pytest.mark.parametrize("peek", ["width", "weight"])
def test_settings_and_the_presence_of_weights_may_be_read(peek: str) -> None:
    pruned = UniversalLayerPruner(Peeking(peek), example_inputs=rows()).prune(groups=["branch.0"])
    assert isinstance(pruned.branch, DroppedBranch)
    assert run(pruned, rows(7)).shape == (7, 2)


@pytest.mark.parametrize(
    ("peek", "why"),
    [("dtype", "takes 'dtype' of a weight"), ("weights", "takes 'norm' of a weight"), ("call", "calls a part of a")],
)
def test_what_a_removed_part_cannot_answer_is_refused(peek: str, why: str) -> None:
    """A dtype may be another one by the time that the pruned model runs."""
    model = Peeking(peek)
    with applied(model, [Drop(fqn="branch", merges=("add",))]), pytest.raises(DroppedTensorError, match=why):
        run(model, rows())


def test_husks_are_copied_and_pickled_and_hold_no_parameters() -> None:
    model = Net(lambda net, x: x + net.branch(x), branch=nn.Sequential(linear(), nn.ReLU()))
    with applied(model, [Drop(fqn="branch", merges=("add",))]):
        assert list(model.state_dict()) == []
        for again in (copy.deepcopy(model.branch), pickle.loads(pickle.dumps(model.branch))):
            part = getattr(again, "0")
            assert isinstance(part, RemovedModule)
            assert part.weight is REMOVED_VALUE
            assert part.out_features == 8


def test_an_identity_stays_torchs_own_and_shows_no_weights() -> None:
    """So that a model pruned by identities alone loads where this library is not."""
    model = Net(lambda net, x: net.head(net.a(x)), a=linear(), head=linear())
    with applied(model, [Pass(fqn="a", position=0, keyword=None)]):
        assert type(model.a) is nn.Identity
        assert not hasattr(model.a, "weight")


def test_what_holds_husks_is_scored_pruned_and_repaired_again() -> None:
    """Enough removals are left for outputs to be handed on, for which all that the model holds is looked at."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        for branch in net.branches:
            x = x + branch(torch.tanh(x))
        return net.head(torch.tanh(x))

    branches = nn.ModuleList(nn.Sequential(linear(), nn.GELU(), linear()) for _ in range(8))
    model = randomised(Net(forward, stem=linear(), branches=branches, head=linear()))
    batches = [rows(16, seed=seed) for seed in range(4)]
    first = UniversalLayerPruner(model, calibration=batches)
    whole = next(r for r in first.removals if {*r.groups} == {"branches.2.0", "branches.2.2"})
    pruned = first.prune(groups=[whole])
    assert any(isinstance(held, RemovedModule) for module in pruned.modules() for held in vars(module).values())
    second = UniversalLayerPruner(pruned, calibration=batches)
    smaller = second.prune(max_param_reduction=0.3)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in pruned.parameters())
    assert second.repair_report is not None
    assert second.repair_report.kept
