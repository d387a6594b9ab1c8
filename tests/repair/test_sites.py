"""Sites of repair: each changes the tensor that it names, linearly, in models of many kinds."""

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from models import families
from models.nets import Net, conv, image, linear, randomised
from oracle.linearity import faults


def linear_and_wide():
    """Convolutions of every kind behind batch norms, scales and reshapes."""
    norm = nn.BatchNorm2d(8)
    parts = {
        "stem": conv(3, 8), "norm": norm, "depthwise": conv(8, groups=8), "grouped": conv(8, groups=2),
        "plain": nn.BatchNorm2d(8, affine=False), "strided": nn.Conv2d(8, 8, 3, stride=2), "head": linear(72, 5),
    }  # fmt: skip

    def forward(net, x):
        x = torch.relu(net.norm(net.stem(x)))
        x = x + net.plain(net.depthwise(x))
        x += net.grouped(torch.relu(x))
        return net.head(torch.tanh(net.strided(x).flatten(1))).reshape(-1, 5, 1).squeeze(2)

    return randomised(Net(forward, **parts)), image()


@pytest.mark.parametrize(
    ("family", "num_sums"),
    [("", 3), ("llama", 8), ("gpt2", 8), ("bert", 8), ("lfm2", 8), ("dinov2", 8), ("resnet", 7), ("convnext", 6)],
)
def test_a_change_of_a_weight_reaches_just_what_its_site_says(family, num_sums):
    """Held against a run with another weight. ``num_sums`` transforms reach further than their own output."""
    if family:
        model = families.build(family).double()
        inputs = UniversalLayerPruner(model).inputs
    else:
        model, inputs = linear_and_wide()
        model, inputs = model.double(), inputs.double()
    wrong, sites, num_further = faults(model, inputs)
    assert wrong == []
    assert len(sites) > num_sums
    assert num_further >= num_sums
