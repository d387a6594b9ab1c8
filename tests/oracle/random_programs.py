"""Random programs for the oracle: forwards drawn operation by operation, as no block of ``blocks.py`` has them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oracle.random_nets import randomise

SIZE = 8  # of images


class Step(NamedTuple):
    """One line of a program: register ``result`` gets what ``operation`` makes of other registers."""

    result: int
    operation: str
    reads: tuple[int, ...]
    module: str = ""


class Program(nn.Module):
    """Carries out a list of steps; register 0 is the input, ``(batch, 3, 8, 8)``."""

    def __init__(self, steps: Sequence[Step], modules: Mapping[str, nn.Module], returns: Sequence[int]) -> None:
        super().__init__()
        self.steps, self.returns = tuple(steps), tuple(returns)
        self.ops = nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> Any:
        registers = {0: x}
        for result, operation, reads, module in self.steps:
            given = [registers[number] for number in reads]
            if module:
                registers[result] = WITH_MODULE[operation](self.ops[module], *given)
            else:
                registers[result] = PLAIN[operation](*given)
        out = tuple(registers[number] for number in self.returns)
        return out if len(out) > 1 else out[0]

    def extra_repr(self) -> str:
        return "\n".join(map(str, self.steps))


# ---- operations -------------------------------------------------------------------------------------------------


def _shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def _added_in_place(x: Tensor, y: Tensor) -> Tensor:
    out = x.clone()
    out += y
    return out


def _added_to_module(f: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out = f(x)
    out += y
    return out


def _written_in_part(f: nn.Module, x: Tensor) -> Tensor:
    out = x.clone()
    out[:, :2] = f(x)[:, :2]
    return out


def _glu(f: nn.Module, x: Tensor) -> Tensor:
    a, b = f(torch.cat([x, x], 1)).chunk(2, 1)
    return a * b.sigmoid()


def _half(f: nn.Module, x: Tensor) -> Tensor:
    """A residual on what is left of a half of the channels."""
    a, b = f(x).split(x.shape[1] // 2, 1)
    return torch.cat([a + b, b], 1)


def _tokens(f: nn.Module, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    tokens = tokens + f(tokens)
    return tokens.transpose(1, 2).reshape(x.shape)


def _channels_last(f: nn.Module, x: Tensor) -> Tensor:
    return f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _attention(f: nn.Module, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    query, key, value = f(x).flatten(2), y.flatten(2), z.flatten(2)
    return (value @ (key.transpose(1, 2) @ query).softmax(1)).view(x.shape)


def _listed(f: nn.Module, x: Tensor) -> Tensor:
    found = [x]
    found.append(f(found[-1]))
    return found[0] + found[1]


#: Of tensors of one shape, without a module.
PLAIN: Mapping[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu_": lambda x: F.relu_(x.clone()),
    "double": lambda x: x * 2.0,
    "one_less": lambda x: 1.0 - x,
    "center": lambda x: x - x.mean((2, 3), keepdim=True),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "softmax": lambda x: x.softmax(1),
    "rotate": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "shuffle": _shuffle,
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: torch.add(x, y, alpha=-1),
    "add_": _added_in_place,
    "multiply": lambda x, y: x * y,
    "gate": lambda x, y: x * torch.sigmoid(y),
    "maximum": torch.maximum,
    "where": lambda x, y: torch.where(x > 0, x, y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "sum": lambda *xs: sum(xs[1:], xs[0]),
    "stack_sum": lambda *xs: torch.stack(xs).sum(0),
    "stack_mean": lambda *xs: torch.stack(xs, -1).mean(-1),
    "addcmul": lambda x, y, z: torch.addcmul(x, y, z, value=0.5),
    "cat": lambda *xs: torch.cat(xs, 1),
}

#: How many tensors of one shape each reads; ``cat`` is drawn by itself, as it is of any channels.
_OPERANDS = {
    **dict.fromkeys(["relu", "relu_", "double", "one_less", "center", "layer_norm", "softmax", "rotate", "shuffle"], 1),
    **dict.fromkeys(["add", "subtract", "add_", "multiply", "gate", "maximum", "where", "lerp", "stack_mean"], 2),
    **dict.fromkeys(["sum", "stack_sum", "addcmul"], 3),
}

#: Of a module that keeps shapes, and one tensor or more of one shape.
WITH_MODULE: Mapping[str, Callable[..., Tensor]] = {
    "call": lambda f, x: f(x),
    "twice": lambda f, x: f(F.relu(f(x))),
    "residual": lambda f, x: x + f(x),
    "listed": _listed,
    "dropout": lambda f, x: x + F.dropout(f(x), 0.1, f.training),
    "picked": lambda f, x: x + f(x)[torch.arange(x.shape[0])],
    "pooled": lambda f, x: x + f(x.mean((2, 3), keepdim=True)).expand_as(x),
    "squeeze": lambda f, x: x * f(x.mean((2, 3), keepdim=True)).sigmoid(),
    "smaller": lambda f, x: x + F.interpolate(f(F.avg_pool2d(x, 2)), scale_factor=2),
    "rolled": lambda f, x: torch.roll(f(torch.roll(x, (1, 1), (2, 3))), (-1, -1), (2, 3)),
    "checkpoint": lambda f, x: checkpoint(f, x, use_reentrant=False),
    "relu_after": lambda f, x: F.relu(f(x), inplace=True),
    "written_in_part": _written_in_part,
    "half": _half,
    "add_": _added_to_module,
    "attention": _attention,
    "glu": _glu,
    "tokens": _tokens,
    "channels_last": _channels_last,
}


# ---- drawing ----------------------------------------------------------------------------------------------------


class _Writer:
    """Draws a program step by step."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.steps: list[Step] = []
        self.modules: dict[str, nn.Module] = {}
        self.channels: dict[int, int] = {}  # of each register but the input

    def step(self, operation: str, reads: Sequence[int], channels: int, module: nn.Module | None = None) -> int:
        name = f"m{len(self.modules)}" if module is not None else ""
        if module is not None:
            self.modules[name] = module
        self.steps.append(Step(len(self.steps) + 1, operation, tuple(reads), name))
        self.channels[len(self.steps)] = channels
        return len(self.steps)

    def recent(self) -> int:
        return self.rng.choice(list(self.channels)[-4:])

    def alike(self, channels: int, num: int) -> list[int]:
        """Registers of so many channels, which may be the same."""
        return self.rng.choices([number for number, found in self.channels.items() if found == channels], k=num)

    def draw(self) -> None:
        """Draw one more step."""
        x = self.recent()
        channels = self.channels[x]
        kind = self.rng.random()
        if kind < 0.12 and channels <= 16:
            y = self.recent()
            self.step("cat", [x, y], channels + self.channels[y])
        elif kind < 0.45:
            operation = self.rng.choice(list(_OPERANDS))
            self.step(operation, [x, *self.alike(channels, _OPERANDS[operation] - 1)], channels)
        elif kind < 0.6:
            other = self.rng.choice([4, 6, 8, 12])
            self.step("call", [x], other, self.body(channels, other))
        else:
            self.apply(self.rng.choice(list(WITH_MODULE)), x, channels)

    def apply(self, operation: str, x: int, channels: int) -> None:
        if operation in ("tokens", "channels_last"):
            hidden = nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
            module: nn.Module = nn.Sequential(nn.LayerNorm(channels), *hidden)
        elif operation in ("pooled", "squeeze"):
            module = nn.Conv2d(channels, channels, 1)
        else:
            wide = 2 * channels if operation == "glu" else channels
            module = self.body(wide, wide)
        num = {"add_": 1, "attention": 2}.get(operation, 0)
        self.step(operation, [x, *self.alike(channels, num)], channels, module)

    def body(self, num_in: int, num_out: int) -> nn.Module:
        rng = self.rng
        kind = rng.randrange(6)
        if kind == 0:
            return self.convolution(num_in, num_out)
        if kind == 1:
            return nn.Sequential(self.norm(num_in), self.activation(), self.convolution(num_in, num_out))
        if kind == 2:
            hidden = rng.choice([4, 8])
            spatial = nn.Conv2d(hidden, hidden, 3, padding=1, groups=rng.choice([1, hidden]))
            ends = nn.Conv2d(num_in, hidden, 1), nn.Conv2d(hidden, num_out, 1)
            return nn.Sequential(ends[0], self.activation(), spatial, self.norm(hidden), ends[1])
        if kind == 3:
            return nn.Sequential(nn.ConvTranspose2d(num_in, num_out, 3, padding=1), self.activation())
        return nn.Sequential(self.convolution(num_in, num_out), self.norm(num_out), self.activation())

    def convolution(self, num_in: int, num_out: int) -> nn.Module:
        size = self.rng.choice([1, 3, 3])
        mode = "circular" if size > 1 and self.rng.random() < 0.2 else "zeros"
        bias = self.rng.random() < 0.6
        return nn.Conv2d(num_in, num_out, size, padding=size // 2, bias=bias, padding_mode=mode)

    def activation(self) -> nn.Module:
        made = (nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.PReLU(), nn.Identity())
        return self.rng.choice(made)

    def norm(self, channels: int) -> nn.Module:
        batch = nn.BatchNorm2d(channels)
        others = (nn.GroupNorm(2, channels), nn.InstanceNorm2d(channels, affine=True), nn.Identity())
        return self.rng.choice([batch, batch, *others])


def program(seed: int) -> Program:
    """Draw a program in float64 and eval mode; the same for the same seed."""
    writer = _Writer(seed)
    channels = writer.rng.choice([4, 6, 8])
    writer.step("call", [0], channels, nn.Conv2d(3, channels, 3, padding=1))
    for _ in range(writer.rng.randint(6, 14)):
        writer.draw()
    last = len(writer.steps)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(writer.channels[last], 5))
    returns = [writer.step("call", [last], 5, head)]
    if writer.rng.random() < 0.2:
        returns.append(writer.rng.randint(1, last))
    torch.manual_seed(seed)
    made = Program(writer.steps, writer.modules, returns).double().eval()
    randomise(made, seed)
    return made
