"""A group that changes channels, or the resolution, leaves by a projection that is folded into what reads it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from layerprune import UniversalLayerPruner, load_pruned
from layerprune.capture import read_calibration
from layerprune.edits import Fold, folds_of
from layerprune.errors import CalibrationError, CriticalGroupError, PlanError
from layerprune.fitting import Projections, fold_alone, fold_into
from layerprune.fitting.projection_fit import Fitted
from layerprune.impact import CrossFit, cut_in_two
from layerprune.plan import PruningPlan
from layerprune.plan.plan import SCHEMA
from layerprune.proof import Removal
from layerprune.removals import find_projections
from layerprune.surgery import applied, operate
from models.nets import Net, Photograph, conv, copy_of, image, linear, parameter, randomised, rows, same_bits
from oracle.checks import TOLERANCE, Oracle, distance, num_params, run
from oracle.simulation import Explicit, simulate, union

# ---- the oracle: an explicit projection in front of the readers ------------------------------------------------------


def conv1d(num_in: int, num_out: int, size: int = 3, **options: object) -> nn.Conv1d:
    return nn.Conv1d(num_in, num_out, size, padding=size // 2, **options)


def _double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


#: name → layers, the shapes of what the pruner sees and of what outputs are compared on, and the fold: (reader, inputs,
#: strides). In each the groups of ``NAMES`` leave.
CHAINS = {
    "linear": (lambda: [linear(8, 6), nn.ReLU(), linear(6, 9), nn.ReLU(), linear(9, 2)], (4, 8), (5, 8), ("4", 6, ())),
    "tokens": (
        lambda: [linear(8, 6), nn.ReLU(), linear(6, 9), nn.ReLU(), linear(9, 2)], (2, 5, 8), (3, 7, 8), ("4", 6, ())
    ),
    "dropout on the way": (
        lambda: [linear(8, 6), nn.ReLU(), linear(6, 9), nn.ReLU(), nn.Dropout(0.5), linear(9, 2)],
        (4, 8), (5, 8), ("5", 6, ()),
    ),
    "1×1": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), conv(6, 2, 1)],
        (2, 3, 8, 8), (3, 3, 7, 9), ("4", 4, (1, 1)),
    ),
    "3×3 with zeros around": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), conv(6, 2)], (2, 3, 8, 8), (3, 3, 7, 9), ("4", 4, (1, 1))
    ),
    "3×3 without zeros": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), nn.Conv2d(6, 2, 3)],
        (2, 3, 8, 8), (3, 3, 7, 9), ("4", 4, (1, 1)),
    ),
    "3×3 that repeats the border": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), conv(6, 2, padding_mode="replicate")],
        (2, 3, 8, 8), (3, 3, 7, 9), ("4", 4, (1, 1)),
    ),
    "stride into 1×1": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6, stride=2), nn.ReLU(), conv(6, 2, 1)],
        (2, 3, 8, 8), (3, 3, 7, 9), ("4", 4, (2, 2)),
    ),
    "stride into 3×3, strided and dilated itself": (
        lambda: [
            conv(3, 4), nn.ReLU(), conv(4, 6, stride=2), nn.ReLU(),
            nn.Conv2d(6, 2, 3, padding=(1, 2), stride=(1, 2), dilation=(2, 1), bias=False),
        ],
        (2, 3, 16, 16), (3, 3, 15, 17), ("4", 4, (2, 2)),
    ),
    "another stride for each axis": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6, stride=(1, 3)), nn.ReLU(), conv(6, 2)],
        (2, 3, 9, 9), (3, 3, 7, 11), ("4", 4, (1, 3)),
    ),
    "the same channels, another resolution": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 4, stride=2), nn.ReLU(), conv(4, 2)],
        (2, 3, 8, 8), (3, 3, 7, 9), ("4", 4, (2, 2)),
    ),
    "Conv1d": (
        lambda: [conv1d(3, 4), nn.ReLU(), conv1d(4, 6, stride=2), nn.ReLU(), conv1d(6, 2)],
        (2, 3, 16), (3, 3, 17), ("4", 4, (2,)),
    ),
    "a pool that stays": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 2)],
        (2, 3, 8, 8), (3, 3, 7, 9), ("5", 4, (1, 1)),
    ),
    "two groups of channels": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), conv(6, 4, groups=2)],
        (2, 3, 8, 8), (3, 3, 7, 9), ("4", 4, (1, 1)),
    ),
    "a stride into three groups of channels, no zeros around": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6, stride=2), nn.ReLU(), nn.Conv2d(6, 3, 2, groups=3)],
        (2, 3, 8, 8), (3, 3, 9, 11), ("4", 4, (2, 2)),
    ),
    "channel by channel": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), conv(6, 6, 1, groups=6)],
        (2, 3, 8, 8), (3, 3, 7, 9), ("4", 4, (1, 1)),
    ),
    "Conv1D of transformers": (
        lambda: [linear(8, 6), nn.ReLU(), linear(6, 9), nn.ReLU(), Conv1D(2, 9)], (2, 5, 8), (3, 7, 8), ("4", 6, ())
    ),
    "a mean and a flatten that stay": (
        lambda: [conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(6, 2)],
        (2, 3, 8, 8), (3, 3, 7, 9), ("6", 4, ()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_a_fold_computes_what_an_explicit_projection_does(name: str) -> None:
    make, shape, fresh, expected = CHAINS[name]
    torch.manual_seed(0)
    oracle = Oracle(randomised(nn.Sequential(*make())).double(), ((_double(*shape),), {}), ((_double(*fresh),), {}))
    (removal,) = [r for r in oracle.pruner.removals if r.kind == "projection"]
    assert removal.groups == ("2",)
    (fold,) = folds_of(removal.edits)
    assert (fold.fqn, fold.num_in, fold.strides) == expected
    oracle.check_removal(removal)
    assert oracle.moved["projection"] == 1


#: name → the function that reads ``y`` with the parameters ``n.w`` and ``n.c``, their shapes, what leaves, the example.
FUNCTIONS = {
    "linear": (
        lambda n, y: functional.linear(y, n.w, n.c), ((2, 9), (2,)), (linear(8, 6), linear(6, 9)), (4, 8), (5, 8)
    ),
    "linear, by keywords, tokens": (
        lambda n, y: functional.linear(input=y, weight=n.w), ((2, 9),), (linear(8, 6), linear(6, 9)),
        (2, 5, 8), (3, 7, 8),
    ),
    "a matrix product": (lambda n, y: y @ n.w, ((9, 2),), (linear(8, 6), linear(6, 9)), (4, 8), (5, 8)),
    "1×1": (
        lambda n, y: functional.conv2d(y, n.w, n.c), ((2, 6, 1, 1), (2,)), (conv(3, 4), conv(4, 6)),
        (2, 3, 8, 8), (3, 3, 7, 9),
    ),
    "3×3 with zeros around": (
        lambda n, y: functional.conv2d(y, n.w, n.c, padding=1), ((2, 6, 3, 3), (2,)), (conv(3, 4), conv(4, 6)),
        (2, 3, 8, 8), (3, 3, 7, 9),
    ),
    "3×3 without, strided": (
        lambda n, y: functional.conv2d(y, n.w, n.c, 2), ((2, 6, 3, 3), (2,)), (conv(3, 4), conv(4, 6)),
        (2, 3, 8, 8), (3, 3, 7, 9),
    ),
}  # fmt: skip


class Own(nn.Module):
    """A leaf that reads with parameters of its own."""

    def __init__(self, function: Callable[[Own, Tensor], Tensor], shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.w = parameter(*shapes[0])
        self.c = parameter(*shapes[1]) if len(shapes) > 1 else None
        self.function = function

    def forward(self, y: Tensor) -> Tensor:
        return self.function(self, y)


@pytest.mark.parametrize("where", ["in the model's forward", "in a module"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_a_projection_in(name: str, where: str) -> None:
    function, shapes, (first, second), shape, fresh = FUNCTIONS[name]
    torch.manual_seed(0)
    before = nn.Sequential(copy.deepcopy(first), nn.ReLU(), copy.deepcopy(second), nn.ReLU())
    if where == "in a module":
        model: nn.Module = Net(lambda n, x: n.own(n.before(x)), before=before, own=Own(function, shapes))
    else:
        parts = {"w": parameter(*shapes[0])} | ({"c": parameter(*shapes[1])} if len(shapes) > 1 else {})
        model = Net(lambda n, x: function(n, n.before(x)), before=before, **parts)
    oracle = Oracle(randomised(model).double(), ((_double(*shape),), {}), ((_double(*fresh),), {}))
    (removal,) = [r for r in oracle.pruner.removals if r.kind == "projection"]
    assert removal.groups == ("before.2",)
    (fold,) = folds_of(removal.edits)
    owner = "own." if where == "in a module" else ""
    assert (fold.fqn, fold.function, fold.num_in) == (f"{owner}w", True, 4 if len(shape) == 4 else 6)
    knows_padding = where == "in the model's forward" or "linear" in name
    exact = len(shapes) > 1 and "zeros around" not in name and knows_padding
    assert fold.constant == (f"{owner}c" if exact else None)
    oracle.check_removal(removal)
    assert oracle.moved["projection"] == 1


def test_two_functions_of_one_module_take_two_projections_in() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self.w = parameter(3, 9), parameter(2, 7)
            self.between = nn.Sequential(nn.ReLU(), linear(3, 7), nn.ReLU())

        def forward(self, y: Tensor) -> Tensor:
            return functional.linear(self.between(functional.linear(y, self.v)), self.w)

    model = randomised(nn.Sequential(linear(8, 6), nn.ReLU(), linear(6, 9), nn.ReLU(), Both())).double()
    pruner = UniversalLayerPruner(model, calibration=[rows(64, seed=seed).double() for seed in range(4)])
    alone = [i for i, removal in enumerate(pruner.removals) if removal.groups in (("2",), ("4.between.1",))]
    folds = check_against_explicit(pruner, pruner._planner.of(alone, ()), rows(5).double())
    assert {fold.fqn for fold in folds} == {"4.v", "4.w"}


def test_a_weight_of_another_module_that_a_function_reads_with_takes_a_projection_in() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        return functional.linear(torch.relu(n.b(torch.relu(n.a(x)))), n.held.weight, n.held.bias)

    model = Net(forward, a=linear(8, 6), b=linear(6, 9), held=linear(9, 2))
    oracle = Oracle(randomised(model).double(), ((_double(4, 8),), {}), ((_double(5, 8),), {}))
    (removal,) = [r for r in oracle.pruner.removals if r.kind == "projection"]
    (fold,) = folds_of(removal.edits)
    assert (fold.fqn, fold.constant) == ("held.weight", "held.bias")
    oracle.check_removal(removal)
    with applied(oracle.model, removal.edits):
        assert oracle.model.held.in_features == 6
    assert oracle.model.held.in_features == 9


# ---- a constant that a batch norm takes ------------------------------------------------------------------------------

#: name → the reader and what is behind it, the example, and what takes the constant.
NORMED = {
    "a linear layer": (lambda: [nn.Linear(9, 2, bias=False), nn.BatchNorm1d(2)], "5.running_mean"),
    "a linear layer with a bias": (lambda: [linear(9, 2), nn.BatchNorm1d(2)], "4.bias"),
    "a batch norm without statistics": (
        lambda: [nn.Linear(9, 2, bias=False), nn.BatchNorm1d(2, track_running_stats=False)], None
    ),
    "something in between": (lambda: [nn.Linear(9, 2, bias=False), nn.ReLU(), nn.BatchNorm1d(2)], None),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMED)
def test_a_batch_norm_right_behind_takes_the_constant(name: str) -> None:
    layers, constant = NORMED[name]
    model = randomised(nn.Sequential(linear(8, 6), nn.ReLU(), linear(6, 9), nn.ReLU(), *layers())).double()
    oracle = Oracle(model, ((_double(4, 8),), {}), ((_double(5, 8),), {}))
    (removal,) = [r for r in oracle.pruner.removals if r.groups == ("2",)]
    assert [fold.constant for fold in folds_of(removal.edits)] == [constant]
    oracle.check_removal(removal)


@pytest.mark.parametrize(("padding", "constant"), [(0, "5.running_mean"), (1, None)])
def test_where_zeros_are_around_no_batch_norm_takes_a_constant(padding: int, constant: str | None) -> None:
    last = [nn.Conv2d(6, 2, 3, padding=padding, bias=False), nn.BatchNorm2d(2)]
    model = randomised(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), *last)).double()
    oracle = Oracle(model, ((_double(2, 3, 8, 8),), {}), ((_double(3, 3, 7, 9),), {}))
    (removal,) = [r for r in oracle.pruner.removals if r.groups == ("2",)]
    assert [fold.constant for fold in folds_of(removal.edits)] == [constant]
    oracle.check_removal(removal)


def test_the_fitted_constant_moves_the_running_mean_by_hand_derived_numbers() -> None:
    """``N(V (B x + b))`` subtracts μ; with the weight ``V B`` it has to subtract ``μ − V b``."""
    last = [nn.Linear(9, 3, bias=False), nn.BatchNorm1d(3)]
    model = randomised(nn.Sequential(linear(8, 6), nn.Tanh(), linear(6, 9), nn.Identity(), *last))
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    pruned = pruner.prune(groups=["2"], repair=None)
    mean = model[5].running_mean.clone()
    with torch.no_grad():
        shift = model[4].weight @ model[2].bias
        assert torch.allclose(pruned.get_submodule("5").running_mean, mean - shift, atol=2e-3)
        assert shift.abs().max() > 0.1
        assert torch.allclose(pruned(rows(32, seed=99)), model(rows(32, seed=99)), atol=5e-3)
    assert torch.equal(model[5].running_mean, mean)
    loaded = pruner.plan(groups=["2"]).apply(model, weights_follow=True)
    loaded.load_state_dict(pruned.state_dict())
    assert same_bits(loaded, pruned)


def test_several_readers_of_one_tensor_share_the_projection() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        y = torch.relu(n.a(x))
        y = n.act(n.b(y))
        return n.c(y) + n.d(y)

    net = Net(forward, a=linear(8, 6), b=linear(6, 9), act=nn.ReLU(), c=linear(9, 3), d=linear(9, 3))
    oracle = Oracle(randomised(net).double(), ((_double(4, 8),), {}), ((_double(5, 8),), {}))
    (removal,) = [r for r in oracle.pruner.removals if r.groups == ("b",)]
    assert {(fold.fqn, fold.value, fold.source) for fold in folds_of(removal.edits)} == {
        ("c", "act", "relu"),
        ("d", "act", "relu"),
    }
    oracle.check_removal(removal)


class Inverted(nn.Module):
    """Narrow, wide, by channel and narrow again, as in MobileNet; strided, so that nothing of its shape is there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = conv(3, 4), conv(4, 12, 1)
        self.depthwise = conv(12, 12, stride=2, groups=12)
        self.down, self.up = conv(12, 3, 1), conv(3, 12, 1)
        self.project, self.head = conv(12, 5, 1), conv(5, 2, 1)
        self.act1, self.act2 = nn.Hardswish(inplace=True), nn.Hardswish(inplace=True)
        self.excite = Net(lambda n, x: x * torch.sigmoid(n.up(torch.relu(n.down(x.mean((2, 3), True))))),
                          down=conv(12, 3, 1), up=conv(3, 12, 1))  # fmt: skip
        del self.down, self.up

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = self.excite(self.act2(self.depthwise(self.act1(self.expand(x)))))
        return self.head(torch.relu(self.project(x)))


def test_an_inverted_bottleneck_leaves_up_to_its_last_convolution() -> None:
    oracle = Oracle(randomised(Inverted()).double(), ((_double(2, 3, 8, 8),), {}), ((_double(3, 3, 7, 9),), {}))
    found = {r.groups: r for r in oracle.pruner.removals if r.kind == "projection"}
    assert ("expand", "depthwise", "excite.down", "excite.up") in found
    for removal in found.values():
        oracle.check_removal(removal)
    assert "project" in {name for groups in found for name in groups}


# ---- what is refused -------------------------------------------------------------------------------------------------


def reason_of(model: nn.Module, example: Tensor, name: str) -> str:
    groups = UniversalLayerPruner(randomised(model), example_inputs=example).groups
    (group,) = [group for group in groups if group.name == name]
    assert not group.can_remove
    return group.reason


def test_a_transposed_convolution_takes_no_projection_in() -> None:
    layers = [conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), nn.ConvTranspose2d(6, 20, 3)]
    assert "'4' reads it, and is a ConvTranspose2d" in reason_of(nn.Sequential(*layers), image(), "2")


def test_a_convolution_by_channel_stays_where_one_that_mixes_them_would_be_larger_than_what_leaves() -> None:
    """4 -> 12 channels, 1x1, are 60 parameters; by channel they are 12.9, and 12.4.9 where all channels are mixed."""
    layers = [conv(3, 4), nn.ReLU(), conv(4, 12, 1), nn.ReLU(), conv(12, groups=12)]
    reason = reason_of(nn.Sequential(*layers), image(), "2")
    assert "60 parameters would leave, and what reads it would grow by 324" in reason  # 12·4·9 − 12·9


def test_functions_that_convolve_groups_of_channels_take_no_projection_in() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        return functional.conv2d(torch.relu(n.b(torch.relu(n.a(x)))), n.w, None, 1, 1, 1, 2)

    net = Net(forward, a=conv(3, 4), b=conv(4, 8), w=parameter(20, 4, 3, 3))
    assert "'conv2d' reads it, and is a function that convolves groups of channels" in reason_of(net, image(), "b")


def test_a_stride_that_a_forward_gives_a_function_cannot_follow() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        return functional.conv2d(torch.relu(n.b(torch.relu(n.a(x)))), n.w)

    net = Net(forward, a=conv(3, 4), b=conv(4, 6, stride=2), w=parameter(2, 6, 1, 1))
    assert "'conv2d' would have to read it from another grid (2×6×4×4 to 2×4×8×8)" in reason_of(net, image(), "b")


def test_a_weight_that_is_computed_takes_no_projection_in() -> None:
    net = Net(lambda n, x: functional.linear(torch.relu(n.b(torch.relu(n.a(x)))), n.w * 2),
              a=linear(8, 6), b=linear(6, 9), w=parameter(2, 9))  # fmt: skip
    assert "'linear' (linear) reads it together with other tensors" in reason_of(net, rows(), "b")


def test_a_weight_that_two_functions_read_with_takes_no_projection_in() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        y = torch.relu(n.b(torch.relu(n.a(x))))
        return functional.linear(y, n.w) + functional.linear(y.tanh(), n.w)

    net = Net(forward, a=linear(8, 6), b=linear(6, 9), w=parameter(2, 9))
    assert "'linear' reads it, and shares its weights" in reason_of(net, rows(), "b")


def test_a_reader_beside_that_is_no_transform_keeps_a_group() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.act(n.b(torch.relu(n.a(x))))
        return n.c(y) * y.softmax(-1).sum(-1, True)

    net = Net(forward, a=linear(8, 6), b=linear(6, 9), act=nn.ReLU(), c=linear(9, 3))
    assert "'softmax' (softmax) reads it" in reason_of(net, rows(), "b")


def test_what_would_grow_by_more_than_it_saves_stays_and_says_by_how_much() -> None:
    layers = [linear(8, 9), nn.ReLU(), linear(9, 2), nn.ReLU(), linear(2, 40)]
    reason = reason_of(nn.Sequential(*layers), rows(), "2")
    assert "20 parameters would leave, and what reads it would grow by 280" in reason  # 9·2 + 2, and 40·(9 - 2)


def test_a_weight_that_is_tied_takes_no_projection_in() -> None:
    net = nn.Sequential(linear(8, 6), nn.ReLU(), linear(6, 9), nn.ReLU(), linear(9, 9), nn.ReLU(), linear(9, 9))
    net[6].weight = net[4].weight
    assert "'4' reads it, and shares its weights" in reason_of(net, rows(), "2")


def test_a_transform_that_is_called_twice_takes_no_projection_in() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.act(n.b(torch.relu(n.a(x))))
        return n.c(n.c(y))

    net = Net(forward, a=linear(8, 6), b=linear(6, 9), act=nn.ReLU(), c=linear(9, 9))
    assert "'c' reads it, and is called several times" in reason_of(net, rows(), "b")


def test_a_pool_that_rounds_down_is_no_subsampling() -> None:
    """At 8×8 every second place would do; at 9×9 the pool makes 4 places, and every second place are 5."""
    layers = [
        conv(3, 4),
        nn.ReLU(),
        conv(4, 6),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(6, 6, 3, padding=1),
        nn.ReLU(),
        conv(6, 2),
    ]
    reason = reason_of(nn.Sequential(*layers), image(), "2")
    assert "on inputs of another size '6' would make" in reason


def test_a_model_that_takes_one_size_only_has_a_note_that_names_the_others() -> None:
    layers = [conv(3, 4), nn.ReLU(), conv(4, 6, stride=2), nn.ReLU(), conv(6, 2), nn.Flatten(), linear(32, 3)]
    pruner = UniversalLayerPruner(randomised(nn.Sequential(*layers)), calibration=[image(4, seed=0), image(4, seed=1)])
    assert any(removal.groups == ("2",) for removal in pruner.removals)
    told = [note for note in pruner.notes if "does not run on inputs of" in note]
    assert len(told) == 1
    assert "inputs of 4×3×9×9 and of 4×3×15×15 (RuntimeError: " in told[0]
    assert told[0].endswith("was proven on no other size than the example inputs'")
    assert told[0] in pruner.plan(groups=["2"]).notes
    assert pruner.render_plan().count("does not run on inputs of") == 1


def test_a_model_that_takes_some_other_sizes_has_a_note_that_names_the_rest() -> None:
    class Even(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] > 9:
                raise ValueError("too large")
            return x

    layers = [Even(), conv(3, 4), nn.ReLU(), conv(4, 6, stride=2), nn.ReLU(), conv(6, 2)]
    pruner = UniversalLayerPruner(randomised(nn.Sequential(*layers)), example_inputs=image())
    (told,) = [note for note in pruner.notes if "does not run on inputs of" in note]
    assert "inputs of 2×3×15×15 (ValueError: too large)" in told
    assert told.endswith("was proven on only one other size than the example inputs'")


def test_where_no_size_is_refused_or_nothing_is_projected_there_is_no_note() -> None:
    fixed = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.Flatten(), linear(256, 3))
    for model in (stages(), randomised(fixed)):
        pruner = UniversalLayerPruner(model, example_inputs=image())
        assert not any("does not run on inputs of" in note for note in pruner.notes)


def test_who_wants_no_projections_gets_none() -> None:
    pruner = UniversalLayerPruner(chain(), calibration=BATCHES, projections=False)
    assert {group.name for group in pruner.groups if group.can_remove} == {"4"}
    assert not any(r.needs_calibration for r in pruner.removals)


def test_branches_and_blocks_only_means_no_projections() -> None:
    net = randomised(nn.Sequential(linear(8, 6), nn.ReLU(), linear(6, 9), nn.ReLU(), linear(9, 2)))
    for granularity in ("branch", "block"):
        pruner = UniversalLayerPruner(net, example_inputs=rows(), granularity=granularity)
        assert not any(r.needs_calibration for r in pruner.removals)


# ---- without calibration data ---------------------------------------------------------------------------------------


def chain() -> nn.Sequential:
    """One group that leaves by a projection only, and one that leaves as it is."""
    return randomised(
        nn.Sequential(linear(8, 6), nn.Tanh(), linear(6, 9), nn.Tanh(), linear(9, 9), nn.Tanh(), linear(9, 2))
    )


def test_without_data_the_group_is_not_safe_and_says_what_it_needs() -> None:
    pruner = UniversalLayerPruner(chain(), example_inputs=rows())
    assert [(group.name, group.verdict) for group in pruner.groups] == [
        ("4", "removable"),
        ("2", "with_calibration"),
        ("0", "critical"),
        ("6", "critical"),
    ]
    by_name = {group.name: group for group in pruner.groups}
    assert not by_name["2"].can_remove
    assert by_name["2"].needs_calibration
    assert np.isnan(by_name["2"].impact)
    assert by_name["2"].reason.endswith("calibration data: pass calibration=, an iterable of batches")
    assert not by_name["4"].needs_calibration
    text = pruner.render_plan()
    assert text.count("✓ SAFE TO REMOVE") == 1
    assert text.count("○ REMOVABLE WITH CALIBRATION DATA") == 1
    assert text.count("Needs calibration: ") == 1
    assert "Groups: 4 (1 safe to remove now, 1 with calibration data, 2 critical)" in text


def test_with_data_the_group_can_be_removed_now() -> None:
    pruner = UniversalLayerPruner(chain(), calibration=BATCHES)
    (group,) = (group for group in pruner.groups if group.name == "2")
    assert group.verdict == "removable"
    assert group.can_remove
    assert group.needs_calibration
    assert group.reason == ""
    assert group.impact > 0


def test_without_data_projections_are_looked_for_only_when_the_groups_are_asked_for(monkeypatch) -> None:
    looked: list[list[str]] = []

    def looking(graph, groups, modules, names, critical):
        looked.append(list(names))
        return find_projections(graph, groups, modules, names, critical)

    monkeypatch.setattr("layerprune.discovery.find_projections", looking)
    pruner = UniversalLayerPruner(chain(), example_inputs=rows())
    pruner.prune(max_param_reduction=0.9)
    assert looked == []
    assert {group.name: group.verdict for group in pruner.groups}["2"] == "with_calibration"
    assert len(pruner.removals) > len([r for r in pruner.removals if not r.needs_calibration])
    assert len(looked) == 1
    assert "2" in looked[0]


def test_without_data_no_plan_uses_it_and_the_plan_says_so() -> None:
    pruner = UniversalLayerPruner(chain(), example_inputs=rows())
    plan = pruner.plan(max_param_reduction=0.9)
    assert [removal.groups for removal in plan.removals] == [("4",)]
    assert not plan.needs_calibration
    assert any("1 group leaves by projections at most" in note and "calibration=" in note for note in plan.notes)


def test_without_data_a_group_that_is_named_is_refused_with_the_remedy() -> None:
    pruner = UniversalLayerPruner(chain(), example_inputs=rows())
    with pytest.raises(CalibrationError, match=r"group '2' leaves by a projection only.*calibration="):
        pruner.prune(groups=["2"])


# ---- with calibration data ------------------------------------------------------------------------------------------

BATCHES = [rows(64, seed=seed) for seed in range(8)]


def test_what_is_linear_in_an_earlier_tensor_is_found_again() -> None:
    """Between two linear layers nothing is lost: ``C (B x + b) + c`` is ``(C B) x + (C b + c)``."""
    model = randomised(nn.Sequential(linear(8, 6), nn.Tanh(), linear(6, 9), nn.Identity(), linear(9, 3)))
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    pruned = pruner.prune(groups=["2"], repair=None)
    before, after = model[2], model[4]
    with torch.no_grad():
        assert torch.allclose(_reader(pruned).weight, after.weight @ before.weight, atol=2e-3)
        assert torch.allclose(_reader(pruned).bias, after.weight @ before.bias + after.bias, atol=2e-3)
    assert num_params(pruned) == num_params(model) - (6 * 9 + 9) - 3 * (9 - 6)
    (found,) = pruner.projection_report.fitted
    assert (found.value, found.source, found.readers) == ("3", "1", ("4",))
    assert found.left < 1e-6


def test_the_projection_is_the_ridge_regression_of_the_rows() -> None:
    model = chain()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    pruned = pruner.prune(groups=["2"], repair=None)
    (found,) = pruner.projection_report.fitted
    with torch.no_grad():
        x = model[:2](torch.cat(BATCHES[:6])).double().numpy()  # the last quarter is held out for the verdict
        y = model[:4](torch.cat(BATCHES[:6])).double().numpy()
    middle = x - x.mean(0)
    penalty = found.strength * (middle**2).sum() / x.shape[1]
    matrix = np.linalg.solve(middle.T @ middle + penalty * np.eye(6), middle.T @ (y - y.mean(0))).T
    expected = model[4].weight.detach().double().numpy() @ matrix
    assert np.allclose(_reader(pruned).weight.detach().numpy(), expected, atol=1e-5)
    assert np.allclose(
        _reader(pruned).bias.detach().numpy(),
        model[4].bias.detach().numpy() + model[4].weight.detach().numpy() @ (y.mean(0) - matrix @ x.mean(0)),
        atol=1e-5,
    )


def _reader(pruned: nn.Module) -> nn.Linear:
    """The transform behind the gap; what was taken out of the ``Sequential`` does not count."""
    found = pruned.get_submodule("4")
    assert isinstance(found, nn.Linear)
    return found


def wide_to_narrow() -> nn.Sequential:
    return randomised(
        nn.Sequential(linear(8, 40), nn.Tanh(), linear(40, 24), nn.Tanh(), linear(24, 9), nn.Tanh(), linear(9, 2))
    )


def test_fewer_rows_than_channels_give_the_same_projection_by_the_rows_themselves() -> None:
    model = wide_to_narrow().double()
    batches = read_calibration([rows(6, seed=seed).double() for seed in range(4)], model)
    pruner = UniversalLayerPruner(model, example_inputs=rows().double())
    (removal,) = [r for r in pruner.removals if r.groups == ("2",)]
    made = []
    for memory_bytes in (2**30, 2**16):  # the sums of 41 inputs take 5·8·41·65 bytes, 24 rows less
        pruned = _pruned(model, removal.edits)
        fold_into(model, pruned, batches, removal.edits, memory_bytes=memory_bytes)
        made.append(_reader(pruned))
    assert 5 * 8 * 41 * (41 + 24) > 2**16
    assert torch.allclose(made[0].weight, made[1].weight, atol=1e-9)
    assert torch.allclose(made[0].bias, made[1].bias, atol=1e-9)


def test_more_memory_than_allowed_is_refused_with_the_numbers() -> None:
    model = wide_to_narrow()
    batches = read_calibration([rows(64, seed=seed) for seed in range(4)], model)
    (removal,) = [r for r in UniversalLayerPruner(model, example_inputs=rows()).removals if r.groups == ("2",)]
    with pytest.raises(CalibrationError, match=r"106,600 bytes.*1,000 are allowed"):
        fold_into(model, _pruned(model, removal.edits), batches, removal.edits, memory_bytes=1000)


def test_few_rows_are_told() -> None:
    pruner = UniversalLayerPruner(wide_to_narrow(), calibration=[rows(6, seed=seed) for seed in range(4)])
    assert any("2 of 2 projections have more inputs" in note for note in pruner.notes)
    pruner.prune(groups=["2"], repair=None)
    assert "1 of 1 projections have more inputs" in str(pruner.projection_report)


def _pruned(model: nn.Module, edits: object) -> nn.Module:
    from layerprune.surgery import operate

    pruned = copy.deepcopy(model)
    operate(pruned, edits)
    return pruned


def stages() -> nn.Sequential:
    """Three steps up in channels, two of which halve the resolution."""
    return randomised(
        nn.Sequential(
            conv(3, 4), nn.ReLU(), conv(4, 6, stride=2), nn.ReLU(), conv(6, 8), nn.ReLU(),
            conv(8, 10, stride=2), nn.ReLU(), conv(10, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(5, 3),
        )
    )  # fmt: skip


def test_several_projections_of_one_plan_are_fitted_front_to_back_and_computed_exactly() -> None:
    model = stages().double()
    data = [torch.randn(8, 3, 8, 8, dtype=torch.float64) for _ in range(6)]
    pruner = UniversalLayerPruner(model, calibration=data)
    plan = pruner.plan(groups=["2", "6"])
    assert len(check_against_explicit(pruner, plan, torch.randn(3, 3, 9, 7, dtype=torch.float64))) == 2


def check_against_explicit(pruner: UniversalLayerPruner, plan: PruningPlan, fresh: Tensor) -> list[Fold]:
    """Fit a plan's projections, and hold the pruned model against the untouched one with these in front of readers."""
    model = pruner.model
    pruned = plan.apply(model, weights_follow=True)
    found = fold_into(model, pruned, pruner._batches, plan.edits, memory_bytes=2**30)
    explicit: dict[str, Explicit] = {}
    for edit in folds_of(plan.edits):
        matrix, constant = found.matrices[edit].left, found.matrices[edit].constant
        explicit[edit.fqn] = Explicit(
            matrix, matrix.new_zeros(len(matrix)) if constant is None else constant, edit.strides
        )
    cut = union(r.cut for r in pruner.removals if r.name in {planned.name for planned in plan.removals})
    simulated = simulate(model, pruner.graph, cut, fresh, projections=explicit)
    assert distance(run(pruned, ((fresh,), {})), simulated) < TOLERANCE
    assert distance(simulated, run(model, ((fresh,), {}))) > 1e-4
    return folds_of(plan.edits)


def test_a_projection_of_a_concat_that_loses_an_operand_is_of_the_channels_that_are_left() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        x = torch.relu(n.stem(x))
        x = n.act(torch.cat([n.a(x), n.b(x), x], 1))
        return n.last(n.act2(n.wide(x)))

    net = Net(forward, stem=conv(3, 4), a=conv(4, 3), b=conv(4, 2), act=nn.ReLU(), wide=conv(9, 12, stride=2),
              act2=nn.ReLU(), last=conv(12, 2))  # fmt: skip
    data = [torch.randn(8, 3, 8, 8, dtype=torch.float64) for _ in range(4)]
    pruner = UniversalLayerPruner(randomised(net).double(), calibration=data)
    (fold,) = check_against_explicit(pruner, pruner.plan(groups=["wide", "a"]), torch.randn(3, 3, 9, 7).double())
    assert (fold.fqn, fold.num_in, fold.strides) == ("last", 9 - 3, (2, 2))
    plan = pruner.plan(max_param_reduction=0.95)
    assert num_params(pruner.prune(plan=plan)) == plan.num_params_after


def test_a_projection_is_fitted_from_what_the_pruned_model_makes() -> None:
    """Behind a removal that moves its source, the projection of one batch's tensor still lands on the original's."""
    model = randomised(nn.Sequential(linear(8, 6), linear(6, 6), linear(6, 9), nn.Identity(), linear(9, 3)))
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    pruned = pruner.prune(groups=["1", "2"], repair=None)
    x = rows(32, seed=99)
    with torch.no_grad():
        assert torch.allclose(pruned(x), model(x), atol=5e-3), "all that has gone was linear"


def test_a_budget_counts_what_the_reader_grows_by() -> None:
    model = stages()
    pruner = UniversalLayerPruner(model, calibration=[image(4, seed=seed) for seed in range(4)])
    for share in (0.2, 0.4, 0.6, 0.8):
        plan = pruner.plan(max_param_reduction=share)
        assert plan.num_params_after >= (1 - share) * plan.num_params_before
        pruned = pruner.prune(plan=plan)
        assert num_params(pruned) == plan.num_params_after
        assert pruned(image()).shape == model(image()).shape
    assert plan.needs_calibration


def test_more_may_go_than_the_groups_hold_as_their_readers_shrink() -> None:
    layers = linear(8, 6), nn.ReLU(), linear(6, 64), nn.ReLU(), linear(64, 40)
    model = randomised(nn.Sequential(*layers))
    pruner = UniversalLayerPruner(model, calibration=[torch.randn(4, 8)])
    plan = pruner.plan(max_param_reduction=0.99)
    assert [name for removal in plan.removals for name in removal.groups] == ["2"]
    saved = 6 * 64 + 64 + (64 - 6) * 40  # the group, and the columns of the last layer that nothing feeds any more
    assert num_params(model) - num_params(pruner.prune(plan=plan)) == saved
    assert plan.reduction == pytest.approx(saved / num_params(model))
    share = f"{saved / num_params(model):.1%}"
    assert f"{share} of a budget of 99.0% is used: all that can leave together takes {share}" in plan.notes


@pytest.mark.parametrize("criterion", ["ablation", "shortlist", "influence", "magnitude"])
def test_impacts_are_those_of_the_fitted_projection(criterion: str) -> None:
    pruner = UniversalLayerPruner(chain(), calibration=BATCHES, criterion=criterion)
    (removal,) = [r for r in pruner.removals if r.groups == ("2",)]
    assert 0 < removal.impact < 1


def crosswise(removal: Removal, model: nn.Module) -> list[tuple[list[Tensor], Projections]]:
    """Either half of the batches, with what is fitted on the other one."""
    batches = read_calibration(BATCHES, model)
    halves = batches[0::2], batches[1::2]
    fits = [fold_alone(model, [removal.edits], half, memory_bytes=2**30) for half in halves]
    return [(BATCHES[0::2], fits[1]), (BATCHES[1::2], fits[0])]


def test_influence_is_the_distance_from_what_the_projection_makes_of_rows_it_was_not_fitted_on() -> None:
    model = chain()
    pruner = UniversalLayerPruner(model, calibration=BATCHES, criterion="influence")
    (removal,) = [r for r in pruner.removals if r.groups == ("2",)]
    change = size = 0.0
    for judged, fit in crosswise(removal, model):
        (matrix,) = fit.matrices.values()
        with torch.no_grad():
            x, y = model[:2](torch.cat(judged)), model[:4](torch.cat(judged))
        change += float((y - x @ matrix.left.T.float() - matrix.constant.float()).square().sum())
        size += float(y.square().sum())
    assert removal.impact == pytest.approx((change / size) ** 0.5, rel=1e-4)


def test_ablation_makes_projections_that_have_not_seen_the_batch() -> None:
    model = chain()
    pruner = UniversalLayerPruner(model, calibration=BATCHES, criterion="ablation")
    (removal,) = [r for r in pruner.removals if r.groups == ("2",)]
    changes: list[float] = []
    for judged, fit in crosswise(removal, model):
        made = copy_of(model)
        operate(made, removal.edits, fit.weights)
        with torch.no_grad():
            changes += [float((made(x) - model(x)).square().sum() / model(x).square().sum()) for x in judged]
    assert removal.impact == pytest.approx(sum(changes) / len(changes), rel=1e-4)


def test_of_few_rows_the_impact_is_near_that_on_other_data_and_not_near_zero() -> None:
    """40 inputs and 32 rows: a projection can take each of its rows over as it is, and knows nothing of others."""
    model = wide_to_narrow()
    pruner = UniversalLayerPruner(model, calibration=[rows(4, seed=seed) for seed in range(8)], criterion="ablation")
    (removal,) = [r for r in pruner.removals if r.groups == ("2",)]
    pruned = pruner.prune(groups=["2"], repair=None)
    with torch.no_grad():
        truth, seen = (
            float((pruned(x) - model(x)).square().sum() / model(x).square().sum())
            for x in (rows(512, seed=99), torch.cat([rows(4, seed=seed) for seed in range(6)]))
        )
    assert seen < truth / 2, "the fit misleads"
    assert truth / 2 < removal.impact < 3 * truth


def test_a_single_batch_is_cut_so_that_projections_are_judged_on_the_other_half() -> None:
    (batch,) = read_calibration([rows(64)], chain())
    assert [one.num_samples for one in cut_in_two(chain(), [batch])] == [32, 32]
    (whole,) = read_calibration([rows(1)], chain())
    assert list(cut_in_two(chain(), [whole])) == [whole]
    fit = Projections(
        (Fitted(value="y", source="x", readers=("z",), left=0.1, strength=1.0, num_rows=8, num_inputs=4),)
    )
    assert "may be far too low" in CrossFit((fit,)).notes[-1]
    assert CrossFit((fit, fit)).notes == ()


def test_a_criterion_that_knows_no_projection_says_so() -> None:
    pruner = UniversalLayerPruner(chain(), calibration=BATCHES, criterion="output_change")
    (removal,) = [r for r in pruner.removals if r.groups == ("2",)]
    assert np.isnan(removal.impact)
    assert any("1 removal is not known (a projection takes its place: criterion='ablation'" in n for n in pruner.notes)


def test_the_users_model_stays_as_it_was() -> None:
    model = stages()
    before = Photograph(model)
    UniversalLayerPruner(model, calibration=[image(4, seed=seed) for seed in range(4)]).prune(groups=["2"])
    assert Photograph(model) == before


def test_in_place_gives_the_weights_that_a_copy_gets() -> None:
    data = [image(4, seed=seed) for seed in range(4)]
    model, other = stages(), stages()
    copied = UniversalLayerPruner(model, calibration=data).prune(groups=["2"])
    edited = UniversalLayerPruner(other, calibration=data).prune(groups=["2"], inplace=True)
    assert edited is other
    assert same_bits(edited, copied)


# ---- the plan on disk -----------------------------------------------------------------------------------------------


def test_a_plan_that_folds_is_carried_out_with_data_or_for_weights_that_follow() -> None:
    model = chain()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    plan = PruningPlan.from_json(pruner.plan(groups=["2"]).to_json())
    assert plan.removals[0].needs_calibration
    assert Fold(fqn="4", num_in=6, value="3", source="1", constant="4.bias") in plan.edits
    without = UniversalLayerPruner(chain(), example_inputs=rows())
    before = Photograph(model)
    with pytest.raises(PlanError, match=r"calibration=batches.*weights_follow=True"):
        plan.apply(model)
    with pytest.raises(CalibrationError, match="calibration="):
        without.prune(plan=plan)
    assert Photograph(model).difference(before) == ""
    pruned = pruner.prune(plan=plan)
    empty = plan.apply(chain(), weights_follow=True)
    assert not _reader(empty).weight.any(), "no weight is there that means nothing"
    empty.load_state_dict(pruned.state_dict())
    assert same_bits(empty, pruned)
    assert same_bits(UniversalLayerPruner(chain(), calibration=BATCHES).prune(plan=plan), pruned)


def test_a_plan_from_elsewhere_takes_no_memory_for_a_weight_that_no_removal_leaves() -> None:
    model = chain()
    plan = UniversalLayerPruner(model, calibration=BATCHES).plan(groups=["2"])
    (fold,) = folds_of(plan.edits)
    others = [edit for edit in plan.edits if edit != fold]
    wrong = plan.model_copy(update={"edits": (*others, fold.model_copy(update={"num_in": 10**9}))})
    with pytest.raises(PlanError, match="9,000,000,000 elements where the whole model has"):
        wrong.apply(model, weights_follow=True)
    with pytest.raises(PlanError, match="is no number of channels"):
        PruningPlan.from_json(wrong.to_json().replace("1000000000", "3000000000"))


def test_a_model_that_took_a_projection_in_is_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    model = stages()
    pruner = UniversalLayerPruner(model, calibration=[image(4, seed=seed) for seed in range(4)])
    pruned = pruner.prune(groups=["2", "6"])
    pruner.save(tmp_path / "saved")
    loaded = load_pruned(tmp_path / "saved", model=stages())
    assert same_bits(loaded, pruned)
    assert torch.equal(run(loaded, ((image(),), {})), run(pruned, ((image(),), {})))


def test_a_plan_of_schema_2_is_read() -> None:
    text = UniversalLayerPruner(chain(), example_inputs=rows()).plan(groups=["4"]).to_json()
    assert f'"schema_version": {SCHEMA}' in text
    old = text.replace(f'"schema_version": {SCHEMA}', '"schema_version": 2').replace('"needs_calibration": false,', "")
    assert PruningPlan.from_json(old).apply(chain())(rows()).shape == (*rows().shape[:1], 2)


def test_a_projection_and_a_bypass_behind_it_leave_as_one_projection() -> None:
    """Without '4' it is '6' that reads the tensor behind '2', and so takes the projection in."""
    model = chain()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    plan = pruner.plan(groups=["2", "4"])
    assert [(fold.fqn, fold.num_in) for fold in folds_of(plan.edits)] == [("6", 6)]
    pruned = pruner.prune(plan=plan)
    assert num_params(pruned) == plan.num_params_after == num_params(model) - (6 * 9 + 9) - (9 * 9 + 9) - 2 * (9 - 6)


def test_a_projection_and_a_bypass_that_a_transposed_convolution_reads_exclude_each_other() -> None:
    turned = nn.ConvTranspose2d(6, 6, 3, padding=1)
    layers = [conv(3, 4), nn.Tanh(), conv(4, 6), nn.Tanh(), conv(6, 6), nn.Tanh(), turned, nn.Tanh()]
    model = randomised(nn.Sequential(*layers, conv(6, 8), nn.Tanh(), conv(8, 3)))
    pruner = UniversalLayerPruner(model, calibration=[image(4, seed=seed) for seed in range(4)])
    with pytest.raises(
        CriticalGroupError, match="cannot all be removed together: '6' reads it, and is a ConvTranspose2d"
    ):
        pruner.plan(groups=["2", "4"])
    plan = pruner.plan(max_param_reduction=0.9)
    assert num_params(pruner.prune(plan=plan)) == plan.num_params_after
