"""Hosts that hold a model in a way of their own: what cannot be recorded says so, all else is pruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.errors import UnsupportedModelError
from layerprune.modules import names_with_nan
from layerprune.tensors import same_tensor
from models.nets import Net, linear, rows, run


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = linear(8, 16), linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def chain() -> nn.Sequential:
    return nn.Sequential(linear(), Residual(), Residual(), linear(8, 3)).eval()


def test_an_exported_program_is_refused_by_what_to_prune_instead() -> None:
    exported = torch.export.export(chain(), (rows(),)).module()
    with pytest.raises(UnsupportedModelError, match=r"the model is what torch\.export made.*prune the module that was"):
        UniversalLayerPruner(exported, example_inputs=rows())
    with pytest.raises(UnsupportedModelError, match=r"'inner' is what torch\.export made"):
        UniversalLayerPruner(Net(lambda net, x: net.inner(x), inner=exported), example_inputs=rows())


def test_a_traced_graph_module_is_pruned() -> None:
    original = chain()
    small = UniversalLayerPruner(torch.fx.symbolic_trace(original), example_inputs=rows()).prune(
        groups=["1.up", "1.down"]
    )
    assert torch.allclose(run(small, rows()), run(nn.Sequential(original[0], original[2], original[3]), rows()))


class Hook:
    def __init__(self, offload: bool = False, hooks: tuple[Any, ...] = ()) -> None:
        self.offload = offload
        self.hooks = hooks


@pytest.mark.parametrize("hook", [Hook(True), Hook(hooks=(Hook(), Hook(True)))])
def test_offloaded_weights_are_refused(hook: Hook) -> None:
    model = chain()
    model[1].up._hf_hook = hook
    with pytest.raises(UnsupportedModelError, match=r"'1\.up' has offloaded weights.*without offloading"):
        UniversalLayerPruner(model, example_inputs=rows())


def test_a_hook_that_only_moves_inputs_is_no_offloading() -> None:
    model = chain()
    model[1].up._hf_hook = Hook()
    assert any(group.can_remove for group in UniversalLayerPruner(model, example_inputs=rows()).groups)


def test_what_accelerate_offloads_is_refused() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(chain(), execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match="offloaded weights"):
        UniversalLayerPruner(model, calibration=[rows()])


def test_sharded_weights_are_refused() -> None:
    model = chain()
    model[1].up.weight.ds_id = 3
    with pytest.raises(UnsupportedModelError, match=r"'1\.up' holds 'weight' sharded over processes"):
        UniversalLayerPruner(model, example_inputs=rows())

    class FSDPModule:
        pass

    FSDPModule.__module__ = "torch.distributed.fsdp"
    model = chain()
    model[2].__class__ = type("FSDPResidual", (FSDPModule, Residual), {})
    with pytest.raises(UnsupportedModelError, match=r"'2' is sharded \(FSDPResidual\)"):
        UniversalLayerPruner(model, example_inputs=rows())


# ---- weights of a wrapping class -----------------------------------------------------------------------------------


class Halves(Tensor):
    """A weight in whole numbers and a scale, as quantisation makes it: it can be copied and multiplied, and no more."""

    @staticmethod
    def __new__(cls, whole: Tensor, scale: Tensor) -> Halves:
        return Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype, device=whole.device)

    def __init__(self, whole: Tensor, scale: Tensor) -> None:
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["whole", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], meta: None, size: Any, stride: Any) -> Halves:
        return cls(parts["whole"], parts["scale"])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, bias = args
            return F.linear(x, weight.whole.to(x.dtype) * weight.scale, bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.detach, torch.ops.aten.clone, torch.ops.aten.alias):
            return cls(func(args[0].whole), func(args[0].scale))
        raise NotImplementedError(f"{func} of a quantised weight")


def quantised() -> nn.Sequential:
    model = chain()
    for layer in (layer for layer in model.modules() if isinstance(layer, nn.Linear)):
        scale = layer.weight.detach().abs().max() / 127
        whole = (layer.weight.detach() / scale).round().to(torch.int8)
        layer.weight = nn.Parameter(Halves(whole, scale), requires_grad=False)
    return model


def test_quantised_weights_are_planned_and_pruned() -> None:
    model = quantised()
    small = UniversalLayerPruner(model, example_inputs=rows()).prune(groups=["1.up", "1.down"])
    assert all(isinstance(layer.weight, Halves) for layer in small.modules() if isinstance(layer, nn.Linear))
    assert torch.allclose(run(small, rows()), run(model[3], run(model[2], run(model[0], rows()))), atol=1e-6)


def test_with_data_only_their_biases_are_repaired() -> None:
    model = quantised()
    batches = [rows(16, seed=seed) for seed in range(4)]
    pruner = UniversalLayerPruner(model, calibration=batches)
    small = pruner.prune(max_param_reduction=0.45)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert "its weight is a Halves: quantised weights are not solved again" in str(pruner.repair_report)


def test_the_bits_of_a_wrapped_tensor_are_those_of_its_parts() -> None:
    one = Halves(torch.tensor([[1, 2]], dtype=torch.int8), torch.tensor(0.5))
    assert same_tensor(one, Halves(one.whole.clone(), one.scale.clone()))
    assert not same_tensor(one, Halves(one.whole + 1, one.scale))
    assert not same_tensor(one, Halves(one.whole, one.scale * 2))
    assert not same_tensor(one, torch.tensor([[0.5, 1.0]]))


def test_a_weight_that_cannot_be_summed_up_is_no_nan() -> None:
    model = quantised()
    model[0].bias.data[0] = torch.nan
    assert names_with_nan(model) == ["0.bias"]
