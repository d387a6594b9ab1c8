"""Ways behind a transform: through permutations, told on numbered elements, and through a norm before a sum."""

import pytest
import torch
import transformers
from test_repair import without
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.capture import capture
from layerprune.inputs import as_inputs
from layerprune.repair import closed_form, find_sites, repair
from layerprune.repair.sites.permutation import Elements
from layerprune.repair.sites.token_norms import norm_of
from models import families
from models.nets import Net, close, conv, copy_of, image, linear, padded_and_not, randomised, repeats, run, tokens
from oracle.linearity import faults


def sites_of(model, x):
    graph = capture(model, as_inputs(x))
    return {site.name: site for site in find_sites(graph, graph, model)[0]}, graph


def relative(model, other, batches, output=lambda out: out):
    pairs = [(output(run(model, x)), output(run(other, x))) for x in batches]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs))


# ---- permutations ---------------------------------------------------------------------------------------------------


def test_elements_are_known_by_their_numbers_sample_by_sample():
    """``(2, 2, 3) → (2, 3, 2)``: of 0 … 5 the columns."""
    elements = Elements((2, 2, 3), -1)
    assert elements.moves is None
    assert elements.are_channels_at(-1)
    assert elements.move(lambda x: x.transpose(1, 2), (2, 3, 2))
    moves = elements.moves
    assert moves.sources.tolist() == [0, 3, 1, 4, 2, 5]
    assert moves.by_sample
    assert moves.fits((7, 3, 2))
    assert not moves.fits((2, 2, 3))
    assert elements.are_channels_at(-2)
    assert not elements.are_channels_at(-1)
    x = torch.randn(5, 2, 3)
    assert torch.equal(moves.forth(x).reshape(5, 3, 2), x.transpose(1, 2))
    assert torch.equal(moves.back(x.transpose(1, 2)).reshape(5, 2, 3), x)


def test_samples_that_are_not_side_by_side_are_known_for_one_size_only():
    elements = Elements((3, 2, 4), -1)
    assert elements.move(lambda x: x.transpose(0, 1), (2, 3, 4))
    assert not elements.moves.by_sample
    assert elements.moves.fits((2, 3, 4))
    assert not elements.moves.fits((2, 5, 4))


@pytest.mark.parametrize(
    ("run", "shape"),
    [
        (lambda x: x[:, :1], (2, 1, 3)),  # leaves some out
        (lambda x: x.repeat(1, 2, 1), (2, 4, 3)),
        (lambda x: x.flip(0)[[0, 0]], (2, 2, 3)),  # one twice
        (lambda x: x + 0.5, (2, 2, 3)),
        (lambda x: x.view(1, 2, 6), (2, 2, 3)),  # another shape than was recorded
        (lambda x: x.view(5), (5,)),  # fails
    ],
)
def test_what_is_no_rearrangement_is_not_followed(run, shape):
    elements = Elements((2, 2, 3), -1)
    assert not elements.move(run, shape)
    assert elements.moves is None


class Windows(nn.Module):
    """A linear layer on shifted windows of 2×2 places, put back where they came from."""

    def __init__(self):
        super().__init__()
        self.write = linear()

    def forward(self, x):
        n, side = x.shape[0], x.shape[1]
        w = x.roll((-1, -1), (1, 2)).view(n, side // 2, 2, side // 2, 2, 8).transpose(2, 3).reshape(-1, 4, 8)
        w = self.write(torch.tanh(w.sum(1, keepdim=True) - w))
        w = w.view(n, side // 2, side // 2, 2, 2, 8).transpose(2, 3).reshape(n, side, side, 8)
        return w.roll((1, 1), (1, 2))


def windowed(net, x):
    x = net.stem(x)
    within = net.windows(x)
    return net.head(torch.relu(x + within + net.branch(x)))


def test_a_gap_is_closed_by_a_transform_whose_result_is_put_back_from_windows():
    """The branch does to each window's rows what the windows' transform might have done itself: half of it again."""
    model = Net(windowed, stem=linear(), windows=Windows(), branch=Windows(), head=linear())
    randomised(model)
    with torch.no_grad():
        model.branch.write.weight.copy_(0.5 * model.windows.write.weight)
        model.branch.write.bias.copy_(0.5 * model.windows.write.bias)
    batches = [tokens(8, 16, 8, seed=seed).view(8, 4, 4, 8) for seed in range(4)]
    sites, graph = sites_of(model, batches[0])
    assert sites["windows.write"].moves.by_sample
    assert graph.layers[graph.values[sites["windows.write"].reached].layer].kind == "merge"
    wrong, claimed, _ = faults(copy_of(model).double(), batches[0].double())
    assert wrong == []
    assert {"windows.write", "branch.write"} <= {site.name for site in claimed}
    pruned, edits = without(model, "branch.write", batches[0])
    smaller = [*batches[:3], batches[3][:5]]  # the last batch of a loader
    report = repair(model, pruned, smaller, edits=edits)
    assert close(pruned.windows.write.weight, 1.5 * model.windows.write.weight, 1e-2)
    assert report.after < 1e-4 * report.before


def test_batches_of_other_sizes_are_repaired_by_what_does_not_move():
    """Where windows go is not known for another number of places: their transform only brings back its own result."""
    model = randomised(Net(windowed, stem=linear(), windows=Windows(), branch=Windows(), head=linear()))
    batches = [tokens(8, side * side, 8, seed=side).view(8, side, side, 8) for side in (4, 6, 4, 6)]
    pruned, edits = without(model, "branch.write", batches[0])
    report = repair(model, pruned, batches, edits=edits)
    assert report.kept
    assert report.after < report.before
    assert "windows.write" not in {one.name for one in report.refitted if one.kept}


def test_moves_that_lead_to_nothing_more_are_not_followed():
    def forward(net, x):
        heads = net.query(x).view(*x.shape[:2], 2, 4).transpose(1, 2)
        return net.head(torch.relu(heads).transpose(1, 2).flatten(2))

    model = randomised(Net(forward, query=linear(), head=linear()))
    sites, graph = sites_of(model, tokens())
    assert sites["query"].moves is None
    assert graph.layers[graph.values[sites["query"].reached].layer].type_name == "view"


def test_a_scale_behind_a_permutation_counts_per_channel_and_one_along_places_does_not():
    parts = {"write": conv(3, 4), "head": linear(4)}

    def scaled(net, x):
        return net.head(torch.relu((net.scale * net.write(x).permute(0, 2, 3, 1)).mean((1, 2))))

    def along(net, x):
        return net.head(torch.relu((net.write(x) * net.scale).mean((2, 3))))

    x = image(2, 3, 4)
    channels = randomised(Net(scaled, scale=nn.Parameter(torch.randn(4)), **parts)).double()
    assert faults(channels, x.double())[0] == []
    assert sites_of(channels, x.double())[0]["write"].scales == ("scale",)
    # As many columns as channels: what multiplies the columns is no factor of the channels.
    columns = randomised(Net(along, scale=nn.Parameter(torch.randn(4)), **parts)).double()
    assert sites_of(columns, x.double())[0]["write"].scales == ()


def swin():
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[4], num_heads=[2], window_size=4
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.SwinModel(config, add_pooling_layer=False).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, parameter.shape[1] ** -0.5)
    return model


def test_the_attention_of_swin_reaches_the_residual_stream_through_its_windows():
    model = swin()
    images = [image(8, 3, 32, seed=seed) for seed in range(4)]
    wrong, sites, _ = faults(copy_of(model).double(), images[0][:2].double())
    assert wrong == []
    moved = [site.name for site in sites if site.moves is not None]
    assert moved == [f"encoder.layers.0.blocks.{number}.attention.o_proj" for number in range(4)]
    pruner = UniversalLayerPruner(model, example_inputs=images[0], granularity="branch")
    plan = pruner.plan(groups=["encoder.layers.0.blocks.1.mlp.fc2"])
    pruned = plan.apply(model)
    report = repair(model, pruned, images, edits=plan.edits)
    first = report.refitted[0]
    assert (first.name, first.kept) == ("encoder.layers.0.blocks.1.attention.o_proj", True)
    assert first.left < 0.7
    assert report.after < 0.5 * report.before


def test_blocks_of_torchvision_keep_their_claims():
    """Swin's attention is one layer there; ConvNeXt's last layer of a branch writes channels last, and is permuted."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": [4, 4]}
    first = SwinTransformer(**sizes, num_classes=5)
    second = SwinTransformer(**sizes, num_classes=5, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)
    convnext = ConvNeXt([CNBlockConfig(8, None, 2)], num_classes=5)
    found = {}
    for name, model in {"first": first, "second": second, "convnext": convnext}.items():
        wrong, sites, _ = faults(randomised(model).double(), image(2, 3, 32).double())
        assert wrong == []
        found[name] = sites
    assert {site.name for site in found["second"] if site.passed} == {"features.1.0.mlp.3", "features.1.1.mlp.3"}
    assert {site.name for site in found["convnext"] if site.moves} == {"features.1.0.block.5", "features.1.1.block.5"}
    assert all(site.scales for site in found["convnext"] if site.moves)


# ---- norms ----------------------------------------------------------------------------------------------------------


class RootMeanSquare(nn.Module):
    """As Gemma writes it: in float32, with a gain of one more than the weight."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        wide = x.float() if x.dtype != torch.float64 else x
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)).type_as(x)


def test_norms_are_known_by_what_they_do():
    gemma, layer, root = (randomised(m) for m in (RootMeanSquare(8), nn.LayerNorm(8), nn.RMSNorm(8)))
    found = norm_of(gemma, 8)
    assert not found.is_centred
    assert close(found.gain, 1 + gemma.weight.detach(), 1e-3)
    assert close(found.shift, torch.zeros(8))
    found = norm_of(layer, 8)
    assert found.is_centred
    assert close(found.gain, layer.weight.detach(), 1e-3)
    assert close(found.shift, layer.bias.detach())
    assert not norm_of(root, 8).is_centred
    assert norm_of(nn.LayerNorm(8, elementwise_affine=False), 8).is_centred


class Clamped(RootMeanSquare):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class Hooked(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width)
        self.register_forward_hook(lambda module, args, out: 2 * out)


@pytest.mark.parametrize(
    "module",
    [Clamped(8), Hooked(8), nn.LayerNorm((3, 8)), nn.GroupNorm(2, 8), nn.LayerNorm(4), nn.Softmax(-1), nn.Tanh()],
    ids=lambda module: type(module).__name__,
)
def test_what_does_something_else_is_no_norm(module):
    assert norm_of(module, 8) is None


def test_what_comes_into_a_norm_is_found_from_what_should_come_out():
    for module in (RootMeanSquare(8), nn.LayerNorm(8)):
        norm = norm_of(randomised(module), 8)
        u = tokens()
        made = norm.of(u)
        assert close(norm.before(made, u), u, 1e-3)


def post_norm(net, x):
    """Gemma's branches: linear, norm, sum."""
    x = net.stem(x)
    x = x + net.norm(net.write(torch.tanh(x)))
    return net.head(torch.relu(x + net.branch(x)))


def gapped(norm):
    """A net whose norm gets its token's exact answer from other weights: what is removed is in its span."""
    parts = {name: linear() for name in ("stem", "write", "branch", "head")}
    return randomised(Net(post_norm, norm=norm, **parts))


@pytest.mark.parametrize("norm", [RootMeanSquare(8), nn.LayerNorm(8), nn.RMSNorm(8)], ids=lambda n: type(n).__name__)
def test_a_branch_that_ends_in_a_norm_gets_back_weights_that_exist(norm):
    """The weights in front of the norm were moved, nothing else: those before are there to be found, but for a factor.

    The norm divides a token by its size: ten times the weights are the same. It starts from the moved ones' size.
    """
    model = gapped(norm)
    moved = copy_of(model)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(3)
        moved.write.weight.add_(0.3 * torch.randn(8, 8, generator=draw))
        moved.write.bias.zero_()
    batches = [tokens(8, 20, seed=seed) for seed in range(8)]
    sites, graph = sites_of(model, batches[0])
    assert sites["write"].passed.norm.is_centred == isinstance(norm, nn.LayerNorm)
    assert graph.layers[graph.values[sites["write"].reached].layer].kind == "merge"
    before = relative(model, moved, batches)
    report = repair(model, moved, batches)
    (told,) = [one for one in report.refitted if one.name == "write"]
    assert told.kept
    assert told.left < 0.02
    assert relative(model, moved, [tokens(8, 20, seed=9)]) < 0.02 * before


@pytest.mark.parametrize("norm", [RootMeanSquare(8), nn.LayerNorm(8)], ids=lambda n: type(n).__name__)
def test_half_precision_passes_a_norm_as_well(norm):
    model = gapped(norm)
    with torch.no_grad():
        moved = copy_of(model)
        moved.write.weight.add_(0.3 * torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))
    batches = [tokens(8, 20, seed=seed).bfloat16() for seed in range(8)]
    halves = [half.bfloat16() for half in (copy_of(model), moved)]
    report = repair(*halves, batches)
    (told,) = [one for one in report.refitted if one.name == "write"]
    assert told.kept
    assert told.left < 0.1
    assert halves[1].write.weight.dtype == torch.bfloat16


def test_what_is_before_a_norm_claims_just_what_it_does():
    model = gapped(RootMeanSquare(8)).double()
    wrong, sites, _ = faults(model, tokens().double())
    assert wrong == []
    assert [site.name for site in sites if site.passed] == ["write"]


def test_a_norm_that_nothing_is_added_to_is_passed_only_where_it_stands_for_another():
    """Post-norm as in BERT: nothing is to be had behind the norm, but where the layers behind it are gone."""

    def forward(net, x):
        x = net.stem(x)
        for block in net.blocks:
            x = block(x)
        return net.head(torch.relu(x))

    class PostNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.write, self.norm = linear(), nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(x + self.write(torch.tanh(x)))

    model = randomised(Net(forward, stem=linear(), blocks=nn.ModuleList(PostNorm() for _ in range(3)), head=linear()))
    batches = [tokens(8, 20, seed=seed) for seed in range(8)]
    sites, _ = sites_of(model, batches[0])
    assert not any(site.passed for site in sites.values())
    pruner = UniversalLayerPruner(model, example_inputs=batches[0], granularity="block")
    plan = pruner.plan(groups=["blocks.1.write"])
    pruned = plan.apply(model)
    graphs = capture(model, as_inputs(batches[0])), capture(pruned, as_inputs(batches[0]))
    passed = [site.name for site in find_sites(*graphs, pruned, plan.edits)[0] if site.passed]
    assert passed == ["blocks.0.write"]
    report = repair(model, pruned, batches, edits=plan.edits)
    assert "blocks.0.write" in {one.name for one in report.refitted if one.kept}
    assert report.after < 0.5 * report.before


def test_what_does_not_serve_other_data_stays_before_a_norm_too():
    """On the last batch, on which it is judged, the original adds the opposite."""

    def forward(net, x, sign):
        x = net.stem(x)
        return net.head(x + net.norm(net.write(torch.tanh(x))) + sign * net.branch(x))

    parts = {name: nn.Linear(8, 8, bias=False) for name in ("stem", "write", "branch", "head")}
    model = randomised(Net(forward, norm=nn.RMSNorm(8), **parts))
    x = [tokens(8, 20, seed=seed) for seed in range(4)]
    batches = [(one, torch.tensor(-1.0 if number == 3 else 1.0)) for number, one in enumerate(x)]
    pruned, edits = without(model, "branch", batches[0])
    report = repair(model, pruned, batches, edits=edits)
    assert [one.kept for one in report.refitted if one.name == "write"] == [False]
    assert torch.equal(pruned.write.weight, model.write.weight)


def test_padding_counts_nowhere_before_a_norm():
    def forward(net, x, attention_mask):
        return post_norm(net, x)

    model = randomised(Net(forward, norm=nn.RMSNorm(8), **{n: linear() for n in ("stem", "write", "branch", "head")}))
    short, long = padded_and_not()
    pruned, edits = without(model, "branch", short[0])
    padded = copy_of(pruned)
    repair(model, pruned, short, edits=edits)
    repair(model, padded, long, edits=edits)
    assert not torch.equal(pruned.write.weight, model.write.weight)
    assert close(padded.write.weight, pruned.write.weight, 2e-2)


def test_too_little_memory_is_a_reason_before_a_norm_and_the_bias_stays():
    model = gapped(nn.RMSNorm(8))
    batches = [tokens(8, 20, seed=seed) for seed in range(4)]
    pruned, edits = without(model, "branch", batches[0])
    before = copy_of(pruned)
    report = repair(model, pruned, batches, edits=edits, memory_bytes=500)
    assert report.refused["write"].endswith("more than memory_bytes=500")
    assert torch.equal(pruned.write.bias, before.write.bias)


def test_means_do_not_pass_norms():
    model = gapped(nn.RMSNorm(8))
    batches = [tokens(8, 20, seed=seed) for seed in range(4)]
    pruned, edits = without(model, "branch", batches[0])
    report = repair(model, pruned, batches, edits=edits, how="mean")
    assert "write" not in {one.name for one in report.refitted if one.kept}


@pytest.mark.parametrize("family", ["gemma2", *repeats("gemma3")])
def test_a_block_of_gemma_is_won_back_better_through_its_norms(monkeypatch, family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = families.build(family)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.normal_(0, 0.2)
                elif "embed" not in name:
                    parameter.normal_(0, parameter.shape[1] ** -0.5)
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(3, 40, (16, 16), generator=draw) for _ in range(10)]
    wrong, sites, _ = faults(copy_of(model).double(), batches[0][:2])
    assert wrong == []
    assert len([site for site in sites if site.passed]) == 8  # two branches in each of four blocks
    pruner = UniversalLayerPruner(model, example_inputs=batches[0], granularity="block")
    plan = pruner.plan(groups=["model.layers.1.mlp.down_proj"])
    pruned = plan.apply(model)
    before = copy_of(pruned)
    plain = closed_form.find_sites
    monkeypatch.setattr(closed_form, "find_sites", lambda *args, **kwargs: plain(*args, **{**kwargs, "norms": False}))
    repair(model, before, batches[:8], edits=plan.edits)
    monkeypatch.undo()
    repair(model, pruned, batches[:8], edits=plan.edits)
    left, left_before = (relative(model, other, batches[8:], lambda out: out.logits) for other in (pruned, before))
    assert left < 0.9 * left_before
