"""Copies of a model share nothing with it that runs: hooks, compiled modules, forwards put in by hand, RNGs."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.modules import clone
from layerprune.modules.copier import Copier
from models.nets import Net, Photograph, close, linear, randomised, rows, run


class Watched(nn.Module):
    """A forward that reads what a hook, which closes over the model, has written down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = linear(), linear(), linear(), linear(8, 2)
        self.seen: dict[str, Tensor] = {}

        def keep(module: nn.Module, args: object, out: Tensor) -> None:
            self.seen["a"] = out

        self.a.register_forward_hook(keep)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(x)).relu()).relu()
        return self.head(x + self.seen["a"])


def _is_fake(tensor: Tensor) -> bool:
    return type(tensor) is not Tensor


def test_a_hook_that_closes_over_the_model_closes_over_the_copy_in_a_copy() -> None:
    model = Watched().eval()
    copy = clone(model, lambda tensor: tensor)
    run(copy, rows())
    assert model.seen == {}
    assert list(copy.seen) == ["a"]


def test_what_hooks_write_down_while_a_model_is_planned_does_not_reach_the_user() -> None:
    model, elsewhere = Watched(), []
    model.b.register_forward_hook(lambda module, args, out: elsewhere.append(out))
    before = Photograph(model)
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    pruned = pruner.prune(groups=["b"])
    assert before == Photograph(model)
    assert model.seen == {}
    assert elsewhere == []
    out = run(pruned, rows(7))
    assert out.shape == (7, 2)
    assert not _is_fake(out)


def test_what_hooks_write_down_when_the_pruned_model_runs_does_reach_the_user() -> None:
    kept: list[Tensor] = []
    model = Net(lambda net, x: net.head(net.b(net.a(x)).relu()), a=linear(), b=linear(), head=linear(8, 2))
    model.a.register_forward_hook(lambda module, args, out: kept.append(out))
    pruned = UniversalLayerPruner(model, example_inputs=rows()).prune(groups=["b"])
    run(pruned, rows(3))
    assert [tuple(tensor.shape) for tensor in kept] == [(3, 8)]


def test_a_forward_put_in_by_hand_runs_the_copys_layers_in_a_copy() -> None:
    model = Net(lambda net, x: x, a=linear(), b=linear())
    model.forward = lambda x: model.b(model.a(x))
    copy = clone(model, lambda tensor: nn.Parameter(torch.zeros_like(tensor)))
    assert run(copy, rows()).abs().max() == 0
    assert run(model, rows()).abs().max() > 0


def test_a_function_that_closes_over_nothing_of_the_model_is_the_same_object_in_a_copy() -> None:
    factor = 3.0

    def scale(x: Tensor) -> Tensor:
        return factor * x

    assert Copier(apart=True).copy(scale) is scale


def test_a_function_that_calls_itself_is_copied_over_the_copy() -> None:
    model = nn.ModuleList([linear() for _ in range(3)])

    def apply(x: Tensor, depth: int = 0) -> Tensor:
        return x if depth == len(model) else apply(model[depth](x), depth + 1)

    copier = Copier(apart=False)
    copier.memo[id(model)] = nn.ModuleList()
    assert torch.equal(copier.copy(apply)(rows()), rows())


# ---- torch.compile ----------------------------------------------------------------------------------------------


def _with_a_compiled_body() -> nn.Module:
    body = nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU())
    return Net(
        lambda net, x: net.head(net.body(net.stem(x))),
        stem=linear(),
        body=torch.compile(body, backend="eager"),
        head=linear(8, 2),
    )


def test_the_layers_of_a_compiled_submodule_are_groups_and_are_removed() -> None:
    model = randomised(_with_a_compiled_body())
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    assert {g.name for g in pruner.groups if g.can_remove} == {"body._orig_mod.0", "body._orig_mod.2"}
    pruned = pruner.prune(groups=["body._orig_mod.2"])
    by_hand = model.head(model.body._orig_mod[:2](model.stem(rows())).relu())
    assert torch.allclose(run(pruned, rows()), by_hand)


def test_a_copy_of_a_compiled_submodule_runs_its_own_layers() -> None:
    model = randomised(_with_a_compiled_body())
    with torch.no_grad():
        copy = clone(model, lambda tensor: nn.Parameter(torch.zeros_like(tensor)))
    assert run(copy, rows()).abs().max() == 0


class CompiledLoop(nn.Module):
    """Residual branches in a method that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = linear(), linear(8, 2)
        self.layers = nn.ModuleList([linear() for _ in range(2)])

    @torch.compile(backend="eager")
    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


def test_removals_in_a_compiled_method_hold_when_it_is_compiled_anew() -> None:
    model = CompiledLoop()
    run(model, rows())  # what torch has compiled of the whole model must not serve what is left of it
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    assert {"block", "branch"} <= {removal.kind for removal in pruner.removals}
    for removal in pruner.removals:
        pruned = pruner.prune(groups=list(removal.groups))
        left = run(pruned, rows(3))
        with torch.compiler.set_stance("force_eager"):
            assert close(run(pruned, rows(3)), left)
        assert not close(run(model, rows(3)), left)


@pytest.mark.parametrize("how", ["wrapped", "in one graph", "in place"])
def test_a_branch_of_a_compiled_module_leaves(how: str) -> None:
    def net() -> nn.Module:
        block = Net(lambda n, x: x + n.b(torch.relu(n.a(x))), a=linear(), b=linear())
        return randomised(nn.Sequential(linear(), block, linear()))

    model = net()
    if how == "in place":
        model[1].compile(backend="eager")
    else:
        model[1] = torch.compile(model[1], backend="eager", fullgraph=how == "in one graph")
    run(model, rows())
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    (branch,) = (removal for removal in pruner.removals if removal.kind == "branch")
    pruned = pruner.prune(groups=[branch])
    by_hand = net()
    assert close(run(pruned, rows(3)), run(by_hand[2], run(by_hand[0], rows(3))))


# ---- hooks that change tensors ----------------------------------------------------------------------------------


def test_a_layer_whose_hook_changes_its_input_stays_and_the_plan_says_why() -> None:
    """Removing it would take the hook along, and the layer graph says that the doubled tensor is handed on."""
    layers = nn.Sequential(*(nn.Sequential(linear(), nn.ReLU()) for _ in range(3)))
    model = Net(lambda net, x: net.head(net.layers(x)), layers=layers, head=linear(8, 2))
    model.layers[2][0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model.layers[1][0].register_forward_hook(lambda module, args, out: None)
    by_name = {group.name: group for group in UniversalLayerPruner(model, example_inputs=rows()).groups}
    assert by_name["layers.1.0"].can_remove
    ways = UniversalLayerPruner(model, example_inputs=rows()).removals
    assert [r.name for r in ways if "layers.2.0" in r.groups] == ["layers.2 by its input"]


def test_a_layer_whose_hook_keeps_what_the_forward_reads_stays_and_the_plan_says_why() -> None:
    """Without it the forward would read what the hook has kept before."""
    model = Watched().eval()
    pruner = UniversalLayerPruner(model, example_inputs=rows(), protect_io=False)
    by_name = {group.name: group for group in pruner.groups}
    assert not by_name["a"].can_remove
    assert "a hook of 'a' changes or keeps tensors" in by_name["a"].reason
    assert by_name["b"].can_remove


def test_so_does_one_whose_hook_shares_a_dict_with_the_model() -> None:
    kept: dict[str, Tensor] = {}
    model = Net(lambda net, x: net.head(net.b(net.a(x)) + net.kept["a"]), a=linear(), b=linear(), head=linear(8, 2))
    model.kept = kept
    model.a.register_forward_hook(lambda module, args, out: kept.update(a=out.detach()))
    by_name = {g.name: g for g in UniversalLayerPruner(model, example_inputs=rows(), protect_io=False).groups}
    assert not by_name["a"].can_remove
    assert by_name["b"].can_remove


# ---- random numbers ---------------------------------------------------------------------------------------------


def test_planning_draws_no_numbers_from_python_or_numpy() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        for layer in net.layers:
            if not net.training or (random.random() < 0.5 and np.random.rand() < 0.5):
                x = x + layer(x)
        return net.head(x)

    model = Net(forward, layers=nn.ModuleList([linear() for _ in range(3)]), head=linear(8, 2))
    states = random.getstate(), np.random.get_state()[1].tolist()
    UniversalLayerPruner(model, example_inputs=rows()).prune(max_param_reduction=0.5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_what_a_hook_writes_into_a_set_or_a_number_that_it_closes_over_stays_with_the_copy() -> None:
    seen: set[str] = set()
    count = 0

    def hook(*_: object) -> None:
        nonlocal count
        count += 1
        seen.add("called")

    model = randomised(nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear()))
    model[2].register_forward_hook(hook)
    UniversalLayerPruner(model, example_inputs=rows()).prune(max_param_reduction=0.5)
    assert (count, seen) == (0, set())
    run(model, rows())
    assert (count, seen) == (1, {"called"})
