"""Onlookers: hooks, summaries, profilers and modes see an empty tensor where a layer was; a forward does not."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from layerprune.edits import Drop, Pass
from layerprune.errors import DroppedTensorError
from layerprune.stand_ins import DroppedBranch, DroppedTensor, dropped
from layerprune.surgery import applied, operate
from models.nets import Net, linear, rows, run


class Block(nn.Module):
    """Hands dropped tensors to a layer that stays, and returns one beside its result."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.drop, self.scale = linear(), nn.Dropout(), linear()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.branch(x)
        return x + self.drop(y), y


def pruned() -> nn.Module:
    model = Net(lambda net, x: net.head(net.block(x)[0]), block=Block(), head=linear(8, 3)).eval()
    operate(model, [Drop(fqn="block.branch", merges=("add",))])
    return model


def each(value: Any) -> list[Tensor]:
    return [t for item in value for t in each(item)] if isinstance(value, tuple) else [value]


def look(tensor: Tensor) -> None:
    """What summaries and watchers read."""
    assert len(tensor.size()) == len(tensor.shape) == tensor.dim() == tensor.ndim
    assert tensor.numel() * tensor.element_size() == tensor.nbytes
    assert isinstance(float(tensor.float().mean()), float)
    assert isinstance(tensor.detach().cpu().numpy(), np.ndarray)
    assert isinstance(f"{tensor.std():.3f} {tensor!r}", str)
    assert isinstance(tensor.data.size(), torch.Size)
    assert isinstance((~torch.isfinite(tensor)).all().item(), bool) or math.isnan(tensor.sum().item())


class Watch:
    """A hook that is an object, with a method that is one, too."""

    def __init__(self) -> None:
        self.num = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        for tensor in each((args, out)):
            look(tensor)
            self.num += isinstance(tensor, DroppedTensor)

    def method(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        self(module, args, out)


@pytest.mark.parametrize("way", ["object", "method", "partial", "function", "global", "outermost"])
def test_hooks_see_empty_tensors(way: str) -> None:
    model, watch = pruned(), Watch()
    hook: Any = {
        "object": watch,
        "method": watch.method,
        "partial": partial(Watch.method, watch),
    }.get(way, lambda module, args, out: watch(module, args, out))
    if way == "global":
        handles = [nn.modules.module.register_module_forward_hook(hook)]
    else:
        modules = [model.block] if way == "outermost" else list(model.modules())
        handles = [module.register_forward_hook(hook) for module in modules]
    try:
        assert run(model, rows()).shape == (4, 3)
    finally:
        for handle in handles:
            handle.remove()
    assert watch.num == (1 if way == "outermost" else 4)  # the branch's own, in and out of the dropout, the block's


def test_hooks_before_a_forward_see_them_too() -> None:
    model = pruned()
    sizes: list[Any] = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, args: sizes.append(args[0].size()))
    run(model, rows())
    assert sizes == [(4, 8), (4, 8), (4, 8), (0,), (4, 8)]


def test_what_a_hook_has_kept_can_be_looked_at_later() -> None:
    kept: dict[str, Any] = {}
    model = pruned()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, a, out, name=name: kept.__setitem__(name, out))
    run(model, rows())
    assert kept["block.branch"].shape == (0,)
    assert kept["block"][1].tolist() == []
    assert [kept["block"][1].size(-1), len(kept["block.drop"]), list(kept["block.drop"])] == [0, 0, []]


def test_a_hook_that_changes_an_output_changes_no_dropped_one() -> None:
    """So that steering by hooks goes on: what it makes of nothing is nothing, and the sum leaves it out."""
    model = pruned()
    model.block.branch.register_forward_hook(lambda module, args, out: out * 2 if out.size() is not None else None)
    assert torch.equal(run(model, rows()), run(pruned_like(model), rows()))


def pruned_like(model: nn.Module) -> nn.Module:
    return Net(lambda net, x: net.head(x), head=model.head)


def test_a_forward_inside_a_hook_is_a_forward() -> None:
    model, probe = pruned(), Net(lambda net, x: x.reshape(x.shape[0], -1))
    model.block.branch.register_forward_hook(lambda module, args, out: probe(out))
    with pytest.raises(DroppedTensorError, match="'shape'"):
        run(model, rows())


def test_weights_of_a_removed_layer_are_empty_to_who_counts_them() -> None:
    counted: list[int] = []
    model = pruned()

    def count(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(module, DroppedBranch):
            counted.append(int(torch.prod(torch.LongTensor(list(module.weight.size())))))

    model.block.branch.register_forward_hook(count)
    run(model, rows())
    assert counted == [0]


def test_operations_are_counted_as_of_the_network_that_is_left() -> None:
    model = pruned()
    counts: list[int] = []
    for one in (model, pruned_like(model)):
        with FlopCounterMode(display=False) as counter:
            run(one, rows())
        counts.append(counter.get_total_flops())
    assert counts == [2 * 4 * 8 * 3] * 2


class Sizes(TorchFunctionMode):
    """Reads the size of every function's first argument."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.Size]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and not func.__name__.startswith("__get__"):
            self.seen.append((func.__name__, self.size(args[0])))
        return func(*args, **(kwargs or {}))

    def size(self, tensor: Tensor) -> torch.Size:
        return tensor.shape


def test_a_mode_that_reads_sizes_sees_them_and_hands_on_what_a_forward_asks() -> None:
    with Sizes() as sizes:
        run(pruned(), rows())
    assert ("dropout", (0,)) in sizes.seen
    asking = Net(lambda net, x: x + net.a(x).reshape(x.shape[0], net.a(x).shape[1]), a=linear())
    with applied(asking, [Drop(fqn="a", merges=("add",))]), Sizes(), pytest.raises(DroppedTensorError, match="'shape'"):
        run(asking, rows())


def test_what_depends_on_the_type_alone_is_answered_to_everybody() -> None:
    token = Net(lambda net, d: (d.element_size(), d.itemsize, d.type(), d.get_device(), d.data is d))(
        dropped(["add"], dtype=torch.float64)
    )
    assert token == (8, 8, "torch.DoubleTensor", -1, True)


def test_the_parts_of_a_pass_through_are_tensors() -> None:
    model = Net(lambda net, x: net.head(net.block(x)[0]), block=Block(), head=linear(8, 3)).eval()
    operate(model, [Pass(fqn="block", position=0, keyword=None, structure={"tuple": ["argument", "tensor"]})])
    watch = Watch()
    model.block.register_forward_hook(watch)
    run(model, rows())
    assert watch.num == 1
