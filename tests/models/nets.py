"""The tiny networks that the tests share, and the few tools for looking at them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ExampleModel(nn.Module):
    """The network that the project began with: a stem, two branches joined by a concat, a 1×1 convolution, a head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2a = nn.Conv2d(32, 64, 3, padding=1)
        self.bn2a = nn.BatchNorm2d(64)
        self.relu2a = nn.ReLU()
        self.conv2b = nn.Conv2d(32, 64, 5, padding=2)
        self.bn2b = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(128, 128, 1)
        self.bn3 = nn.BatchNorm2d(128)
        self.relu3 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        xa = self.relu2a(self.bn2a(self.conv2a(x)))
        xb = self.bn2b(self.conv2b(x))
        x = torch.cat([xa, xb], dim=1)
        x = self.relu3(self.bn3(self.conv3(x)))
        x = self.avgpool(x)
        x = x.flatten(1)
        return self.fc(x)


class Net(nn.Module):
    """A network written in one place: ``Net(lambda net, x: net.b(net.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))``."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | nn.Parameter | Tensor):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.function = forward

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def linear(num_in: int = 8, num_out: int | None = None) -> nn.Linear:
    return nn.Linear(num_in, num_in if num_out is None else num_out)


def conv(num_in: int = 4, num_out: int | None = None, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_in if num_out is None else num_out, size, padding=size // 2, **options)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight and every running statistic anew, so that no layer is the identity by accident; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
                if name.endswith(("running_var", "scale")):
                    tensor.abs_().add_(0.5)
    return model.eval()


def tokens(batch: int = 2, length: int = 5, width: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


def padded_and_not() -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Four batches as they are, and the same with three loud tokens behind that the mask leaves out."""
    x = [tokens(8, 5, seed=seed) for seed in range(4)]
    mask = torch.tensor([[1] * 5 + [0] * 3] * 8)
    long = [{"x": torch.cat([one, 50 * tokens(8, 3, seed=7)], 1), "attention_mask": mask} for one in x]
    return [{"x": one, "attention_mask": torch.ones(8, 5)} for one in x], long


def rows(batch: int = 4, width: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))


def image(batch: int = 2, channels: int = 3, size: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The model's output in eval mode, without grad, its own mode kept."""
    training = model.training
    with torch.no_grad():
        out = model.eval()(*args, **kwargs)
    model.train(training)
    return out


class Photograph:
    """Everything of a model that a careful library leaves alone: compare two with ``==``.

    Tensors are compared by identity and bit for bit, modules and hooks by identity, attributes with their order.
    """

    def __init__(self, model: nn.Module):
        self.rng = torch.get_rng_state()
        self.modules = [(name, id(m), type(m), m.training) for name, m in model.named_modules(remove_duplicate=False)]
        self.tensors = {name: (id(t), t.requires_grad, version_of(t)) for name, t in tensors_of(model)}
        self.values = {n: t.detach().clone() for n, t in tensors_of(model) if not (t.is_meta or is_lazy(t))}
        self.attributes = [
            (name, key, list(value) if isinstance(value, dict) else id(value))
            for name, module in model.named_modules()
            for key, value in vars(module).items()
        ]
        self.order = {name: list(vars(module)) for name, module in model.named_modules()}
        self.keys = list(model.state_dict())
        self.hooks = [
            (name, key, [id(hook) for hook in getattr(module, key).values()])
            for name, module in model.named_modules()
            for key in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
        ]

    def difference(self, other: Photograph) -> str:
        """What is not the same; empty if nothing is."""
        for what in ("modules", "tensors", "attributes", "order", "keys", "hooks"):
            if getattr(self, what) != getattr(other, what):
                return what
        if not torch.equal(self.rng, other.rng):
            return "the state of the RNG"
        if self.values.keys() != other.values.keys():
            return "tensors"
        same = (torch.equal(a.nan_to_num(), other.values[n].nan_to_num()) for n, a in self.values.items())
        return "" if all(same) else "the values of tensors"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Photograph) and self.difference(other) == ""

    __hash__ = None


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written into; None where torch does not count that."""
    return None if is_lazy(tensor) or tensor.is_inference() else tensor._version


def is_lazy(tensor: Tensor) -> bool:
    return isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))


def tensors_of(model: nn.Module):
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same state dict, key by key, in order and bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def copy_of(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=tolerance, atol=tolerance))


class Damped(nn.Module):
    """Four residual branches, each of half a tanh."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(linear() for _ in range(4))

    def forward(self, x):
        for block in self.blocks:
            x = x + 0.5 * torch.tanh(block(x))
        return x


def weight_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(
            tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else bytes(str(tensor), "ascii")
        )
    return digest.hexdigest()


def repeats(*names: str) -> list[Any]:
    """Parameters of a test that repeat its point on more models: ``make reliability`` runs them."""
    import pytest  # benchmarks share the nets, and need no pytest

    return [pytest.param(name, marks=pytest.mark.reliability) for name in names]
