"""Models that bring a backward of their own, as reversible layers do: what they keep for it, and what it reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from models.nets import copy_of, linear, randomised, rows


class Replayed(nn.Module):
    """Keeps the state of the RNG when it trains, so that the backward drops what the forward dropped."""

    def __init__(self, net):
        super().__init__()
        self.net, self.state = net, None

    def forward(self, x, *, keep=False, replay=False):
        if keep:
            self.state = torch.get_rng_state()
        if not replay:
            return self.net(x)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.state)
            return self.net(x)


class Block(nn.Module):
    """``y1 = x1 + f(x2)``, ``y2 = x2 + g(y1)``; its inputs are computed back from its outputs."""

    def __init__(self):
        super().__init__()
        self.f = Replayed(nn.Sequential(nn.LayerNorm(4), linear(4)))
        self.g = Replayed(nn.Sequential(nn.LayerNorm(4), linear(4)))

    def forward(self, x):
        x1, x2 = x.chunk(2, -1)
        y1 = x1 + self.f(x2, keep=self.training)
        y2 = x2 + self.g(y1, keep=self.training)
        return torch.cat([y1, y2], -1)

    def back(self, y, grad):
        y1, y2 = y.detach().chunk(2, -1)
        grad1, grad2 = grad.chunk(2, -1)
        with torch.enable_grad():
            y1.requires_grad = True
            g = self.g(y1, replay=True)
            torch.autograd.backward(g, grad2)
        x2, grad1 = (y2 - g).detach(), grad1 + y1.grad
        with torch.enable_grad():
            x2.requires_grad = True
            f = self.f(x2, replay=True)
            torch.autograd.backward(f, grad1)
        x = torch.cat([y1.detach() - f.detach(), x2.detach()], -1)
        return x, torch.cat([grad1, grad2 + x2.grad], -1)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, blocks):
        for block in blocks:
            x = block(x)
        ctx.y, ctx.blocks = x.detach(), blocks
        return x

    @staticmethod
    def backward(ctx, grad):
        y = ctx.y
        for block in reversed(ctx.blocks):
            y, grad = block.back(y, grad)
        return grad, None


class Reversible(nn.Module):
    """Three reversible blocks, with a stem and a head around them or without."""

    def __init__(self, *, with_ends):
        super().__init__()
        self.stem = linear() if with_ends else nn.Identity()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = linear(8, 3) if with_ends else nn.Identity()
        self.keeps_all = False

    def forward(self, x):
        x = self.stem(x)
        if not self.keeps_all:
            return self.head(Reversed.apply(x, self.blocks))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def gradients(model, x):
    """The gradients of one step of training, by name."""
    model = copy_of(model).train()
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    model(x).square().sum().backward()
    return {"x": x.grad, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("with_ends", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_reversible_blocks_that_keep_the_state_of_the_rng_leave_and_train_on(with_ends, trained):
    model = randomised(Reversible(with_ends=with_ends))
    if trained:
        gradients(model, rows())
        model.train()(rows().requires_grad_()).sum().backward()
        model.eval().zero_grad()
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    safe = [group.name for group in pruner.groups if group.can_remove]
    assert {"blocks.1.f.net.1", "blocks.1.g.net.1", "blocks.2.g.net.1"} <= set(safe)
    for name in safe:
        pruned = pruner.prune(groups=[name])
        found = gradients(pruned, rows())
        pruned.keeps_all = True
        expected = gradients(pruned, rows())
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_backward_that_only_gradients_of_the_input_reach_is_part_of_the_proof():
    """Whole blocks cannot hand their input on: the backward calls ``back`` of each."""
    pruner = UniversalLayerPruner(randomised(Reversible(with_ends=False)), example_inputs=rows())
    assert not any("blocks.1 by its input" in removal.name for removal in pruner.removals)
    plain = Reversible(with_ends=False)
    plain.keeps_all = True
    pruner = UniversalLayerPruner(randomised(plain), example_inputs=rows())
    assert any("blocks.1 by its input" in removal.name for removal in pruner.removals)
