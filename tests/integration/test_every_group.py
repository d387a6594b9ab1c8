"""What is shown as removable can be removed: every such group of the small nets of all tests, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_bad_inputs
import test_loops_and_slices as test_loops_and_pieces
import test_parameters
import torch
from test_prices import MODELS
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.modules import num_params
from layerprune.proof.output_form import signature
from models.capture_cases import BLIND
from models.capture_cases import CASES as CAPTURED
from models.nets import Net, linear, parameter, rows, tokens

Prepared = tuple[Callable[[], nn.Module], Callable[[], Any]]


def turned() -> nn.Module:
    """Two branches share a module that has cached what it makes of its parameter."""
    turn = test_parameters.Turned()
    net = nn.Sequential(linear(), test_parameters.TurnedBranch(turn), test_parameters.TurnedBranch(turn), linear(8, 3))
    net(rows())
    return net


#: Refused, or known to lack an edge.
_LEFT_OUT = {*BLIND, "scripted_module"}

NETS: dict[str, Prepared] = {
    **{f"captured: {name}": (case.build, case.inputs) for name, case in CAPTURED.items() if name not in _LEFT_OUT},
    **{
        f"odd: {name}": (case.build, case.inputs)
        for name, case in test_bad_inputs.CASES.items()
        if case.error is None and case.runs
    },
    **{name: net for name, net in MODELS.items() if not name.startswith(("torchvision", "timm", "transformers"))},
    "lists": (lambda: Net(test_parameters.chain, weights=test_parameters.matrices(8, 8, 8, 8, 3)), rows),
    "class's own parameters": (test_parameters.Learner, rows),
    "turned": (turned, rows),
    "injected": (
        lambda: Net(test_loops_and_pieces.injecting, stem=linear(), inject=linear(), f=linear(), head=linear(8, 3)),
        rows,
    ),
    "scaled": (lambda: Net(lambda net, x: net.b(x + net.a(x) * net.s), a=linear(), b=linear(), s=parameter(8)), tokens),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_every_group_that_is_shown_as_removable_can_be_removed(name: str) -> None:
    make, inputs = NETS[name]
    pruner = UniversalLayerPruner(make().eval(), example_inputs=inputs(), protect_io=False, progress=False)
    args, kwargs = pruner.inputs.args, pruner.inputs.kwargs
    with torch.no_grad():
        expected = signature(pruner.model(*args, **kwargs))
    for group in pruner.groups:
        if not group.can_remove:
            continue
        plan = pruner.plan(groups=[group.name])
        pruned = pruner.prune(plan=plan)
        assert num_params(pruned) == plan.num_params_after < plan.num_params_before
        with torch.no_grad():
            assert signature(pruned.eval()(*args, **kwargs)) == expected
