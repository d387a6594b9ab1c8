"""Mean folding: what is gone comes back on average, in the bias of what read or wrote beside it."""

import pytest
import torch
from test_repair import without
from torch import nn

from layerprune.errors import RepairError
from layerprune.modules import write
from layerprune.repair import repair
from models.nets import Net, close, conv, copy_of, image, linear, randomised, rows, run, same_bits

IMAGES = [image(8, seed=seed) for seed in range(4)]


def joined(net, x):
    """Two branches in a concat, and what reads it."""
    x = net.stem(x)
    return torch.relu(net.norm(net.reader(torch.cat([torch.relu(net.stays(x)), torch.relu(net.goes(x))], 1))))


def two_branches(reader, norm=None):
    parts = {"stem": conv(3, 4), "stays": conv(4, 4), "goes": conv(4, 4), "reader": reader}
    return randomised(Net(joined, norm=norm or nn.Identity(), **parts))


def branch_of(model, images):
    """What the branch that goes hands to the concat: (sample, channel, place, place)."""
    return torch.cat([torch.relu(run(model.goes, run(model.stem, x))) for x in images])


def mended(model, group, batches, **options):
    pruned, edits = without(model, group, batches[0])
    report = repair(model, pruned, batches, edits=edits, how="mean", **options)
    return pruned, report


def test_a_concat_branch_that_a_1x1_convolution_read_goes_into_its_bias():
    """``W₁ a + W₂ c + b`` is, but for how c varies, ``W₁ a + (b + W₂ c̄)``."""
    model = two_branches(nn.Conv2d(8, 6, 1))
    pruned, report = mended(model, "goes", IMAGES)
    assert report.kept
    assert [one.name for one in report.refitted] == ["reader"]
    mean = branch_of(model, IMAGES).mean((0, 2, 3))
    expected = model.reader.bias + model.reader.weight[:, 4:, 0, 0] @ mean
    assert close(pruned.reader.bias, expected, 1e-4)
    assert torch.equal(pruned.reader.weight, model.reader.weight[:, :4])
    assert same_bits(pruned.stays, model.stays)


def test_at_padded_borders_the_bias_is_the_least_squares_compromise():
    """A constant c, read by ones of 3×3: 9 c inside, 6 c at the edges, 4 c in the corners of 8 by 8 places."""
    reader = nn.Conv2d(8, 6, 3, padding=1)
    model = two_branches(reader)
    with torch.no_grad():
        model.goes.weight.zero_()
        model.goes.bias.fill_(0.5)
        reader.weight[:, 4:] = 1
    places = IMAGES[0].shape[-1]
    pruned, _ = mended(model, "goes", IMAGES)
    taps = (9 * (places - 2) ** 2 + 6 * 4 * (places - 2) + 4 * 4) / places**2
    assert close(pruned.reader.bias, reader.bias + 0.5 * 4 * taps, 1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_norm_behind_takes_the_mean_where_there_is_no_bias(bias):
    """What it subtracts moves by as much as its input, the other way."""
    model = two_branches(nn.Conv2d(8, 6, 1, bias=bias), nn.BatchNorm2d(6))
    pruned, report = mended(model, "goes", IMAGES)
    assert report.kept
    shift = model.reader.weight[:, 4:, 0, 0] @ branch_of(model, IMAGES).mean((0, 2, 3))
    if bias:
        assert close(pruned.reader.bias, model.reader.bias + shift, 1e-4)
        assert torch.equal(pruned.norm.running_mean, model.norm.running_mean)
    else:
        assert pruned.reader.bias is None
        assert close(pruned.norm.running_mean, model.norm.running_mean - shift, 1e-4)
    assert torch.equal(pruned.norm.running_var, model.norm.running_var)


def test_a_residual_branch_before_a_layer_norm_goes_into_the_writer_before_the_sum():
    def forward(net, x):
        x = net.stem(x)
        return net.head(net.norm(x + torch.relu(net.branch(torch.tanh(x)))))

    parts = {"stem": linear(), "branch": linear(), "norm": nn.LayerNorm(8), "head": linear()}
    model = randomised(Net(forward, **parts))
    batches = [rows(40, seed=seed) for seed in range(4)]
    pruned, report = mended(model, "branch", batches)
    assert report.refitted[0].name == "stem"
    gone = torch.cat([torch.relu(run(model.branch, torch.tanh(run(model.stem, x)))) for x in batches])
    assert close(pruned.stem.bias, model.stem.bias + gone.mean(0), 1e-4)
    assert same_bits(pruned.norm, model.norm)
    assert report.after < report.before


def test_a_bias_is_made_only_if_it_may_be():
    model = two_branches(nn.Conv2d(8, 6, 1, bias=False))
    pruned, report = mended(model, "goes", IMAGES)
    assert not report.kept
    assert pruned.reader.bias is None
    pruned, report = mended(model, "goes", IMAGES, new_biases=True)
    assert report.kept
    shift = model.reader.weight[:, 4:, 0, 0] @ branch_of(model, IMAGES).mean((0, 2, 3))
    assert close(pruned.reader.bias, shift, 1e-4)
    assert isinstance(pruned.reader.bias, nn.Parameter)


def test_padding_tokens_count_nowhere():
    def forward(net, x, attention_mask):
        x = net.stem(x)
        return net.head(torch.tanh(x + net.branch(torch.tanh(x))))

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "branch", "head")}))
    mask = torch.tensor([[1, 1, 0]] * 8)
    x = [torch.randn(8, 3, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    pruned, _ = mended(model, "branch", [{"x": one, "attention_mask": mask} for one in x])
    gone = torch.cat([run(model.branch, torch.tanh(run(model.stem, one[:, :2]))) for one in x])
    assert close(pruned.stem.bias, model.stem.bias + gone.mean((0, 1)), 1e-4)


class Quantised(nn.Linear):
    """Whole numbers for weights, and a step."""

    def __init__(self, of):
        super().__init__(of.in_features, of.out_features)
        self.step = 0.01
        self.weight = nn.Parameter((of.weight.detach() / self.step).round().to(torch.int8), requires_grad=False)
        self.bias = nn.Parameter(of.bias.detach().clone())

    def forward(self, x):
        return nn.functional.linear(x, self.weight.float() * self.step, self.bias)


def test_of_quantised_weights_the_bias_takes_the_mean_in_a_refit_too():
    def forward(net, x):
        x = net.stem(x)
        return net.head(torch.tanh(x + torch.relu(net.branch(torch.tanh(x)))))

    plain = randomised(Net(forward, **{name: linear() for name in ("stem", "branch", "head")}))
    model = Net(forward, stem=Quantised(plain.stem), branch=plain.branch, head=plain.head).eval()
    batches = [rows(40, seed=seed) for seed in range(4)]
    pruned, edits = without(model, "branch", batches[0])
    report = repair(model, pruned, batches, edits=edits)
    assert report.kept
    assert "its bias may take the mean" in report.refused["stem"]
    gone = torch.cat([torch.relu(run(model.branch, torch.tanh(run(model.stem, x)))) for x in batches])
    assert torch.equal(pruned.stem.weight, model.stem.weight)
    assert close(pruned.stem.bias, model.stem.bias + gone.mean(0), 1e-4)
    assert not torch.equal(pruned.head.weight, model.head.weight), "what is not quantised is solved"


def test_a_mean_that_other_batches_do_not_confirm_is_not_folded():
    """The branch is the batch's sign: the last batch has the other one."""

    def forward(net, x, sign):
        x = net.stem(x)
        return net.head(torch.tanh(x + sign * torch.sigmoid(net.branch(x))))

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "branch", "head")}))
    batches = [(rows(40, seed=seed), torch.tensor(-1.0 if seed == 3 else 1.0)) for seed in range(4)]
    pruned, report = mended(model, "branch", batches)
    assert not report.kept
    assert same_bits(pruned.stem, model.stem)


def test_a_new_bias_is_taken_back_where_writing_fails():
    model = Net(lambda net, x: net.head(x), head=nn.Linear(8, 8, bias=False))
    before = copy_of(model)
    with pytest.raises(RuntimeError):
        write(model, {"head.bias": torch.zeros(8), "head.weight": torch.zeros(3, 3)})
    assert model.head.bias is None
    assert same_bits(model, before)


def test_a_way_that_there_is_none_of_is_refused():
    model = two_branches(nn.Conv2d(8, 6, 1))
    with pytest.raises(RepairError, match="how is 'magic'; give one of 'refit', 'mean'"):
        repair(model, copy_of(model), IMAGES, how="magic")
