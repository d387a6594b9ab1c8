"""Kinds: a layer's kind is decided by what it does, by its class first and by the functions that ran otherwise."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune.capture import capture
from layerprune.graph import kind_of_function
from layerprune.inputs import as_inputs
from layerprune.tensors import KINDS
from models.nets import Net, image, linear, parameter, rows, tokens


def kinds(model, *args):
    return {layer.name: layer.kind for layer in capture(model, as_inputs(args)).layers}


def kind_of(module, *args):
    """The kind of a module between two linear layers or on its own inputs."""
    return kinds(Net(lambda net, *xs: net.it(*xs), it=module), *args)["it"]


# ---- torch's own modules ---------------------------------------------------------------------------------------------

SIGNAL = torch.randn(2, 4, 16)
VOLUME = torch.randn(1, 4, 6, 6, 6)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.Linear(8, 8), rows()),
        (nn.Conv1d(4, 4, 3), SIGNAL),
        (nn.Conv2d(3, 4, 3), image()),
        (nn.Conv3d(4, 4, 3), VOLUME),
        (nn.ConvTranspose2d(3, 4, 2), image()),
        (nn.Conv2d(3, 3, 3, groups=3), image()),
        (nn.LSTM(8, 8), tokens()),
        (nn.GRU(8, 4, bidirectional=True), tokens()),
        (nn.RNNCell(8, 8), rows()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_with_a_learned_matrix_or_kernel_are_transforms(module, inputs):
    assert kind_of(module, inputs) == "transform"


def test_attention_with_projections_of_its_own_is_a_transform():
    x = tokens()
    assert kind_of(nn.MultiheadAttention(8, 2, batch_first=True), x, x, x) == "transform"


def test_a_bilinear_layer_is_a_transform():
    assert kind_of(nn.Bilinear(8, 8, 4), rows(), rows()) == "transform"


@pytest.mark.parametrize(
    ("module", "inputs", "kind"),
    [
        (nn.BatchNorm2d(3), image(), "normalization"),
        (nn.LayerNorm(8), rows(), "normalization"),
        (nn.GroupNorm(1, 3), image(), "normalization"),
        (nn.InstanceNorm2d(3), image(), "normalization"),
        (nn.RMSNorm(8), rows(), "normalization"),
        (nn.LocalResponseNorm(2), image(), "normalization"),
        (nn.ReLU(), rows(), "activation"),
        (nn.PReLU(8), rows(), "activation"),
        (nn.Softmax(-1), rows(), "activation"),
        (nn.GELU(), rows(), "activation"),
        (nn.GLU(), rows(), "activation"),
        (nn.MaxPool2d(2), image(), "pooling"),
        (nn.AdaptiveAvgPool2d(1), image(), "pooling"),
        (nn.Upsample(scale_factor=2), image(), "pooling"),
        (nn.Dropout(0.5), rows(), "dropout"),
        (nn.Dropout2d(0.5), image(), "dropout"),
        (nn.Flatten(), image(), "reshape"),
        (nn.Unflatten(1, (2, 4)), rows(), "reshape"),
        (nn.PixelShuffle(2), torch.randn(1, 4, 2, 2), "reshape"),
        (nn.ZeroPad2d(1), image(), "reshape"),
        (nn.Embedding(10, 4), torch.tensor([[1, 2]]), "embedding"),
        (nn.EmbeddingBag(10, 4), torch.tensor([[1, 2]]), "embedding"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_modules_of_torch_have_the_kind_of_their_name(module, inputs, kind):
    assert kind_of(module, inputs) == kind


# ---- modules of the user's own ---------------------------------------------------------------------------------------


class Weight(nn.Module):
    """The base of the custom layers below: one scale per channel."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape))


class RMSNorm(Weight):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class StandardNorm(Weight):
    def forward(self, x):
        return self.weight * (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias).permute(0, 3, 1, 2)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Squared(nn.Module):
    def forward(self, x):
        return torch.square(F.relu(x))


class DropPath(nn.Module):
    """Stochastic depth: nothing at all in eval mode."""

    def __init__(self):
        super().__init__()
        self.rate = 0.1

    def forward(self, x):
        if not self.training:
            return x
        return x * torch.empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)


class Conv1D(nn.Module):
    """As transformers' GPT-2 has it: a linear layer whose weight lies the other way round."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = parameter(8, 4), parameter(4)

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, 8), self.weight).view(*x.shape[:-1], 4)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = parameter(2, 8, 4)

    def forward(self, x):
        return torch.bmm(x, self.weight)


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = parameter(8, 4)

    def forward(self, x):
        return torch.einsum("...i,ij->...j", x, self.weight)


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class Scale(Weight):
    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize(
    ("module", "inputs", "kind"),
    [
        (RMSNorm(8), rows(), "normalization"),
        (StandardNorm(8), rows(), "normalization"),
        (LayerNorm2d(3), image(), "normalization"),
        (Swish(), rows(), "activation"),
        (QuickGELU(), rows(), "activation"),
        (Squared(), rows(), "activation"),
        (DropPath(), rows(), "dropout"),
        (Conv1D(), rows(), "transform"),
        (Experts(), tokens(2, 5), "transform"),
        (Einsum(), tokens(), "transform"),
        (StandardizedConv(3, 4, 3), image(), "transform"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_custom_modules_are_judged_by_what_they_do(module, inputs, kind):
    assert kind_of(module, inputs) == kind


def test_a_learned_scale_per_channel_is_no_transform():
    assert kind_of(Scale(8), rows()) != "transform"


def test_transformers_conv1d_is_a_transform():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    assert kind_of(conv1d(4, 8), rows()) == "transform"


# ---- functions -------------------------------------------------------------------------------------------------------


def test_a_function_with_a_matrix_of_the_model_is_a_transform_and_without_one_it_is_not():
    model = Net(lambda net, x: torch.matmul(F.linear(x, net.w), torch.matmul(x.mT, x)), w=parameter(8, 8))
    found = kinds(model, tokens())
    assert found["linear"] == "transform"
    assert found["matmul"] == "attention"
    assert found["matmul_1"] == "attention"


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: F.relu(x), "activation"),
        (lambda x: x.sigmoid(), "activation"),
        (lambda x: F.softmax(x, -1), "activation"),
        (lambda x: F.layer_norm(x, (8,)), "normalization"),
        (lambda x: F.dropout(x, 0.5, training=False), "dropout"),
        (lambda x: x.flatten(1), "reshape"),
        (lambda x: x.transpose(0, 1), "reshape"),
        (lambda x: x.T, "reshape"),
        (lambda x: x[:, :4], "split"),
        (lambda x: x.chunk(2, 1)[0], "split"),
        (lambda x: x.mean(1), "pooling"),
        (lambda x: x + 1, "other"),
        (lambda x: x.cumsum(0), "other"),
    ],
)
def test_functions_have_the_kind_of_what_they_do(function, kind):
    found = list(kinds(Net(lambda net, x: function(net.a(x)), a=linear()), rows()).values())
    assert found[1] == kind


@pytest.mark.parametrize(
    "merge",
    [
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: x * y,
        lambda x, y: torch.cat([x, y], 1),
        lambda x, y: torch.stack([x, y]),
        lambda x, y: torch.add(x, y),
    ],
)
def test_functions_that_join_two_tensors_of_the_flow_are_merges(merge):
    model = Net(lambda net, x: merge(net.a(x), net.b(x)), a=linear(), b=linear())
    assert list(kinds(model, rows()).values())[-1] == "merge"


def test_attention_without_parameters_has_a_kind_of_its_own():
    model = Net(lambda net, x: F.scaled_dot_product_attention(net.a(x), x, x), a=linear())
    assert kinds(model, tokens())["scaled_dot_product_attention"] == "attention"


@pytest.mark.parametrize("name", ["linear", "relu", "cat", "no_such_function", "embedding", "view", "chunk"])
def test_every_function_has_one_of_the_known_kinds(name):
    for num_tensors in (0, 1, 2):
        for has_matrix in (False, True):
            assert kind_of_function(name, num_tensors, has_matrix) in KINDS
