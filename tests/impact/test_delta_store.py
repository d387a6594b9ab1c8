"""Changes: right to rounding where the backward keeps what they are made of, to half of the precision elsewhere."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from layerprune import UniversalLayerPruner
from layerprune.capture import read_calibration
from layerprune.cost.memory import _Lifetimes
from layerprune.impact import ScoringContext
from layerprune.impact.estimators.gradient_taps import GradientTaps
from models.nets import Net, conv, image, linear, randomised, rows

EXACT, HALF = 2e-6, 4e-3  # relative, of sums of squares: float32's rounding, and twice that of 8 bits


def taps_of(model, batch):
    pruner = UniversalLayerPruner(model, example_inputs=batch, criterion="magnitude")
    return GradientTaps(
        ScoringContext(
            model=model, graph=pruner.graph, removals=pruner.removals, batches=read_calibration([batch], model)
        )
    ), pruner


def squares_of(model, batch, direction, chosen=lambda removal: removal.kind == "branch"):
    """What a backward from one direction finds of some removals, by their groups: a sum per sample."""
    taps, pruner = taps_of(model, batch)

    def pull(out, ends):
        torch.autograd.grad([out], ends, [direction], allow_unused=True)

    found = taps.run(read_calibration([batch], model)[0], pull).squares
    return {removal.groups: row for removal, row in zip(pruner.removals, found, strict=True) if chosen(removal)}


def by_hand(at, rest, change, direction):
    """Sums of squares of gradient times change, of a tensor and what the model makes of it, all in float64."""
    at = at.detach().requires_grad_()
    gradient = torch.autograd.grad([rest(at)], [at], [direction.double()])[0]
    return (gradient * change).square().flatten(1).sum(1).detach().numpy()


def residual(net, x):
    """As in torchvision: what is summed and what is activated is overwritten."""
    x = torch.relu(net.stem(x))
    y = net.norm(net.a(x))
    y += x
    y = torch.relu_(y)
    return net.head(y)


def residual_net():
    return randomised(Net(residual, stem=conv(3, 4), a=conv(4), norm=nn.BatchNorm2d(4), head=conv(4, 2)))


def test_a_sum_that_is_overwritten_is_made_again_of_what_its_backward_keeps():
    model, x, direction = residual_net(), image(), torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = squares_of(model, x, direction)
    exact = model.double()
    with torch.no_grad():
        entry = torch.relu(exact.stem(x.double()))
        branch = exact.norm(exact.a(entry))
    truth = by_hand(entry + branch, lambda z: exact.head(torch.relu(z)), branch, direction)
    assert found["a",] == pytest.approx(truth, rel=EXACT)


def test_nothing_is_kept_beside_what_a_backward_keeps():
    model, x = residual_net(), image(8, size=16)
    taps, _ = taps_of(model, x)
    with _Lifetimes() as plain:
        out = taps.shade.model(x.clone())  # a run copies what it gets
        alone = plain.live
        del out
    begun = []
    with _Lifetimes() as tracker:

        def pull(out, ends):
            begun.append(tracker.live)
            torch.autograd.grad([out], ends, [torch.ones_like(out)], allow_unused=True)

        taps.run(read_calibration([x], model)[0], pull)
    activation = 8 * 4 * 16 * 16 * 4
    assert alone > 3 * activation
    assert begun == [alone]


def test_what_no_backward_keeps_is_kept_in_half_of_its_precision():
    def forward(net, x):
        x = net.stem(x)
        x = x + net.a(x)
        return net.head(x + net.b(x))

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "head")}))
    direction = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found = squares_of(model, rows(), direction)
    exact = model.double()
    with torch.no_grad():
        entry = exact.stem(rows().double())
        first = exact.a(entry)
    truth = by_hand(entry + first, lambda z: exact.head(z + exact.b(z)), first, direction)
    assert found["a",] == pytest.approx(truth, rel=HALF)


def test_a_concat_s_lost_operand_is_read_from_the_concat():
    def forward(net, x):
        x = net.stem(x)
        return net.head(net.norm(torch.cat([net.a(x), net.b(x), net.c(x)], 1)))

    parts = {"a": conv(4, 2), "b": conv(4, 3), "c": conv(4, 5), "stem": conv(3, 4), "head": conv(10, 2)}
    model, x, direction = randomised(Net(forward, **parts, norm=nn.BatchNorm2d(10))), image(), torch.ones(2, 2, 8, 8)
    found = squares_of(model, x, direction, lambda removal: removal.cut.dropped)
    exact = model.double()
    with torch.no_grad():
        entry = exact.stem(x.double())
        each = [part(entry) for part in (exact.a, exact.b, exact.c)]
    for place, name in enumerate("abc"):
        lost = torch.cat([part if i == place else 0 * part for i, part in enumerate(each)], 1)
        truth = by_hand(torch.cat(each, 1), lambda z: exact.head(exact.norm(z)), lost, direction)
        assert found[name,] == pytest.approx(truth, rel=EXACT)


def test_a_sum_of_other_operands_than_were_recorded_is_not_made_again_of_those():
    def forward(net, x):
        x = net.stem(x)
        p, q = torch.tanh(net.a(x)), torch.tanh(net.b(x))
        if not isinstance(x, FakeTensor):
            net.level = torch.relu(x.detach())
            q = p
        return net.head(p + q)

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "head")}))
    direction = torch.ones(4, 8)
    found = squares_of(model, rows(), direction)
    exact = model.double()
    with torch.no_grad():
        p, q = (torch.tanh(part(exact.stem(rows().double()))) for part in (exact.a, exact.b))
    without_b = by_hand(p + p, exact.head, p, direction)  # p comes in place of p + p
    assert found["b",] == pytest.approx(without_b, rel=HALF)
    assert found["b",] != pytest.approx(by_hand(p + p, exact.head, q, direction), rel=0.1)
