"""Dropped tensors and types: a sum keeps the type that its dropped operand would give it, when the model is cast."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.stand_ins import DroppedBranch
from models.nets import Net, linear, rows


@pytest.mark.parametrize("later", [torch.float32, torch.float64])
def test_a_branch_that_widened_a_sum_widens_it_after_it_is_gone(later):
    """The places are computed in 32 bits, whatever the model is of; the layer behind the sum is of the model's type."""

    def forward(net, ids):
        places = torch.sin(torch.arange(40.0).view(5, 8)).expand(2, 5, 8)
        return net.head(places + torch.tanh(net.branch(net.tokens(ids))))

    model = Net(forward, tokens=nn.Embedding(9, 8), branch=linear(), head=linear(8, 3)).eval()
    ids = torch.arange(10).view(2, 5) % 9
    pruned = UniversalLayerPruner(model, example_inputs=ids, protect_io=False).prune(groups=["branch"]).to(later)
    assert pruned(ids).dtype == model.to(later)(ids).dtype == later


def test_a_branch_that_is_cast_to_the_type_of_the_sum_does_not_widen_it():
    model = Net(lambda net, x: x + net.b(net.a(x.to(net.a.bias.dtype))).to(x.dtype), a=linear(), b=linear()).eval()
    pruned = UniversalLayerPruner(model, example_inputs=rows(), protect_io=False).prune(groups=["b"])
    assert pruned.double()(rows()).dtype == model.double()(rows()).dtype == torch.float32


X = torch.ones(3)
MERGES = {
    "add": (lambda x, d: x + d, torch.float64, torch.float32),
    "cast": (lambda x, d: x + d.half(), torch.float32, torch.float32),
    "cast wider": (lambda x, d: x + d.to(dtype=torch.float64), torch.float64, torch.float64),
    "cast as another": (lambda x, d: x + d.type_as(x), torch.float32, torch.float32),
    "mul": (lambda x, d: d * x, torch.float64, torch.float32),
    "cat": (lambda x, d: torch.cat([x, d]), torch.float64, torch.float32),
    "in place": (lambda x, d: x.clone().add_(d), torch.float32, torch.float32),
}


@pytest.mark.parametrize("again", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize(("merge", "double", "half"), MERGES.values(), ids=MERGES)
def test_merges_give_the_type_that_they_would_with_a_tensor_there(merge, double, half, again):
    branch = DroppedBranch(("add", "mul", "cat"))
    real = torch.ones(3)
    assert merge(X, branch()).dtype == torch.float32
    for wanted, cast in ((double, branch.double), (half, branch.half)):
        cast()
        found = merge(X, again(branch)())
        assert found.dtype == wanted == merge(X, real.to(branch.token.dtype)).dtype
        assert torch.equal(found, X.to(wanted))
