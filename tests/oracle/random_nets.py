"""Random networks for the oracle, as hypothesis draws them: small, random weights, every shape that removals know."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from oracle.blocks import (
    RESIDUALS,
    Attention,
    Basic,
    Dense,
    DropPath,
    Gate,
    Glu,
    Inception,
    Net,
    Own,
    Pair,
    Paired,
    Residual,
    Shared,
    Skip,
    SliceWrite,
    Split,
    Summed,
    Tied,
    TwiceRead,
    Unit,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]

#: What a theme's nets are made of; every net has plain units besides.
THEMES: dict[str, tuple[str, ...]] = {
    "chain": ("unit", "unit", "own", "shared", "nested", "pool", "tied"),
    "residual": ("residual", "basic", "nested", "twice_read", "pool", "summed"),
    "gate": ("gate", "glu", "residual", "unit"),
    "concat": ("inception", "bare", "residual", "skip", "unit", "split", "gate"),
    "dense": ("dense", "inception", "skip", "bare"),
    "tokens": ("residual", "attention", "unit", "gate", "inception", "bare", "own", "nested", "paired"),
    "odd": ("tied", "shared", "paired", "split", "own", "slice_write", "twice_read", "summed", "glu", "shared_pair"),
    "mixed": (
        "unit", "own", "shared", "nested", "residual", "basic", "gate", "glu", "inception", "bare", "dense", "skip",
        "split", "paired", "slice_write", "twice_read", "summed", "pool", "tied",
    ),
}  # fmt: skip


class _Builder:
    """Draws blocks; ``image`` nets map (batch, channels, 8, 8), others (batch, tokens, channels)."""

    def __init__(self, draw: Draw, image: bool, kinds: tuple[str, ...]) -> None:
        self.draw, self.image, self.kinds = draw, image, kinds
        self.relu = nn.ReLU(inplace=True)  # one object for many blocks

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def block(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        kind = self.choose(*self.kinds) if depth > 0 else self.choose("unit", "unit", "unit", "own")
        return getattr(self, kind)(c_in, c_out, depth - 1)

    def same(self, c_in: int, c_out: int, make: Callable[[int], nn.Module]) -> nn.Module:
        """A block that keeps the number of channels, behind a unit that changes it where it must change."""
        return make(c_in) if c_in == c_out else nn.Sequential(self.unit(c_in, c_out), make(c_out))

    # ---- units --------------------------------------------------------------------------------------------------

    def transform(self, c_in: int, c_out: int) -> nn.Module:
        if not self.image:
            return nn.Linear(c_in, c_out, bias=self.choose(True, False))
        if c_in == c_out and self.draw(st.integers(0, 4)) == 0:
            return nn.Conv2d(c_in, c_out, 3, padding=1, groups=c_in)
        size = self.choose(1, 3)
        return nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=self.choose(True, False))

    def norm(self, c: int) -> nn.Module | None:
        if self.image:
            return self.choose(
                nn.BatchNorm2d, nn.BatchNorm2d, lambda c: nn.GroupNorm(1, c), nn.Identity, lambda c: None
            )(c)
        return self.choose(nn.LayerNorm, nn.RMSNorm, lambda c: None)(c)

    def act(self, c: int) -> nn.Module | None:
        return self.choose(
            nn.ReLU, lambda: nn.ReLU(inplace=True), nn.GELU, nn.Tanh, lambda: nn.SiLU(inplace=True), nn.LeakyReLU,
            lambda: nn.PReLU(c if self.image else 1), lambda: None, lambda: self.relu,
        )()  # fmt: skip

    def unit(self, c_in: int, c_out: int, depth: int = 0) -> nn.Module:
        parts = [self.transform(c_in, c_out), self.norm(c_out)]
        style = self.choose(
            "module", "module", "sequential", "function", "function_", "method_", "torch", "gelu", "none"
        )
        if style == "sequential":
            drop = self.choose(nn.Dropout, DropPath, nn.Identity)()
            return nn.Sequential(*(part for part in (*parts, self.act(c_out), drop) if part is not None))
        return Unit(style, transform=parts[0], norm=parts[1], act=self.act(c_out) if style == "module" else None)

    def own(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        return Own(c_in, c_out, self.image)

    def pool(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        pool = self.choose(nn.AvgPool2d, nn.MaxPool2d)(3, stride=1, padding=1)
        return nn.Sequential(self.unit(c_in, c_out), pool, self.unit(c_out, c_out))

    def nested(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        return nn.Sequential(self.block(c_in, c_out, depth), nn.Sequential(self.block(c_out, c_out, depth)))

    # ---- merges -------------------------------------------------------------------------------------------------

    def residual(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        f = self.block(c_in, c_out, depth)
        f = nn.Sequential(f, self.choose(DropPath, nn.Dropout)()) if self.choose(True, False) else f
        shortcut = None if c_in == c_out else self.choose(self.transform, self.unit)(c_in, c_out)
        shape = (c_out, 1, 1) if self.image else (c_out,)
        gamma = torch.zeros(shape) if self.draw(st.integers(0, 3)) == 0 else None
        post = self.choose(None, None, self.relu, self.norm(c_out))
        return Residual(self.choose(*RESIDUALS), f, shortcut, post, gamma)

    def basic(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        downsample = (
            None if c_in == c_out else nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
        )
        return Basic(
            conv1=nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), norm1=nn.BatchNorm2d(c_out),
            conv2=nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), norm2=nn.BatchNorm2d(c_out),
            relu=nn.ReLU(inplace=True), downsample=downsample,
        )  # fmt: skip

    def gate(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        def make(c: int) -> nn.Module:
            fc = (lambda a, b: nn.Conv2d(a, b, 1)) if self.image else nn.Linear
            gate = self.choose(None, nn.Sigmoid(), nn.Hardsigmoid())
            gated = Gate(self.choose("x * s", "s * x", "torch.mul", "x.mul(s)"), fc1=fc(c, 2), fc2=fc(2, c), gate=gate)
            return nn.Sequential(self.unit(c, c), gated) if self.choose(True, False) else gated

        return self.same(c_in, c_out, make)

    def glu(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        f, g = self.block(c_in, c_out, depth), self.unit(c_in, c_out)
        return Glu(f=f, g=g, out=self.transform(c_out, c_out))

    def inception(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        widths = self.draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
        branches = [self.block(c_in, width, depth) for width in widths]
        style = self.choose("", "keyword", "concat") + self.choose("", "", " input", " twice")
        total = sum(widths) + (c_in if "input" in style else 0) + (widths[0] if "twice" in style else 0)
        options = (
            [nn.BatchNorm2d(total), nn.ReLU(), nn.AvgPool2d(3, 1, 1), nn.PReLU(total)] if self.image else [nn.GELU()]
        )
        between = self.draw(st.lists(st.sampled_from(options), max_size=2, unique=True))
        if self.image and self.draw(st.integers(0, 3)) == 0:
            between.append(nn.Conv2d(total, total, 3, padding=1, groups=total))
        fuse = nn.Sequential(self.transform(total, c_out), *filter(None, [self.act(c_out)]))
        return Inception(style, branches=nn.ModuleList(branches), between=nn.ModuleList(between), fuse=fuse)

    def bare(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        """A concat that whatever comes next reads."""
        first = self.draw(st.integers(1, c_out - 1)) if c_out > 1 else 1
        widths = [first, c_out - first] if c_out > 1 else [1]
        branches = nn.ModuleList(self.block(c_in, width, depth) for width in widths)
        return Inception("", branches=branches, between=nn.ModuleList(), fuse=self.choose(nn.Identity, nn.GELU)())

    def dense(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        num, growth = self.draw(st.integers(2, 4)), self.draw(st.integers(1, 3))
        widths = [c_in + i * growth for i in range(num)]

        def conv(width: int) -> nn.Module:
            return self.choose(self.transform, self.unit)(width, growth)

        return Dense(
            norms=nn.ModuleList(nn.BatchNorm2d(width) for width in widths),
            convs=nn.ModuleList(map(conv, widths)),
            fuse=nn.Conv2d(c_in + num * growth, c_out, 1),
        )  # fmt: skip

    def skip(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        low = self.draw(st.integers(1, 4))
        up = nn.ConvTranspose2d(low, low, 2, stride=2)
        return Skip(
            self.choose("interpolate", "up"),
            f=self.block(c_in, low, depth),
            up=up,
            fuse=self.transform(c_in + low, c_out),
        )

    def summed(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        branches = nn.ModuleList(self.block(c_in, c_out, depth) for _ in range(self.draw(st.integers(2, 3))))
        return Summed(self.choose("sum", "in place"), branches=branches)

    def twice_read(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        return self.same(c_in, c_out, lambda c: TwiceRead(f=self.block(c, c, depth), g=self.block(c, c, depth)))

    # ---- less usual ---------------------------------------------------------------------------------------------

    def shared(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        style = self.choose("f(f(x))", "x + f(f(x))", "two residuals", "f(x) + f(g(x))")
        return self.same(c_in, c_out, lambda c: Shared(style, f=self.block(c, c, depth), g=self.unit(c, c)))

    def tied(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        def make(c: int) -> nn.Module:
            f, g = ((nn.Conv2d(c, c, 3, padding=1) if self.image else nn.Linear(c, c)) for _ in range(2))
            g.weight = f.weight
            style = self.choose("tied", "borrowed")
            return Tied(style, f=f, g=g) if style == "tied" else Tied(style, f=f, bias=nn.Parameter(torch.zeros(c)))

        return self.same(c_in, c_out, make)

    def shared_pair(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        """One module under two names."""

        def make(c: int) -> nn.Module:
            twin = self.unit(c, c)
            return nn.Sequential(twin, self.unit(c, c), twin)

        return self.same(c_in, c_out, make)

    def split(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        if c_out % 2 or not self.image:
            return self.unit(c_in, c_out)
        return self.same(
            c_in, c_out, lambda c: Split(self.choose("plain", "shuffle"), f=self.block(c // 2, c // 2, depth))
        )

    def paired(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        def make(c: int) -> nn.Module:
            pair = Pair(self.choose("tuple", "list", "dict", "same"), f=self.block(c, c, depth), g=self.unit(c, c))
            return Paired(self.choose("keyword", "position"), pair=pair)

        return self.same(c_in, c_out, make)

    def slice_write(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        return self.same(c_in, c_out, lambda c: SliceWrite(self.choose("plain", "added"), f=self.block(c, c, depth)))

    def attention(self, c_in: int, c_out: int, depth: int) -> nn.Module:
        def make(c: int) -> nn.Module:
            style = self.choose("module", "function", "matmul")
            if style == "module":
                return Attention(style, attention=nn.MultiheadAttention(c, 1, batch_first=True))
            return Attention(style, qkv=nn.Linear(c, 3 * c), out=nn.Linear(c, c))

        return self.same(c_in, c_out, make)


@st.composite
def nets(draw: Draw, theme: str) -> Net:
    """Draw a network of a theme, in float64 and eval mode, with random weights."""
    image = theme != "tokens"
    builder = _Builder(draw, image, THEMES[theme])
    widths = draw(st.lists(st.sampled_from([2, 3, 4, 4, 4]), min_size=2, max_size=4))
    stem = builder.unit(3, widths[0])
    body = [builder.block(a, b, depth=2) for a, b in pairwise(widths)]
    form, pool = builder.choose("sequential", "list", "loop"), builder.choose("mean", "flatten")
    head = nn.Linear(widths[-1] * (4 if image else 5) if pool == "flatten" else widths[-1], 3)
    net = Net(stem, body, head, image, form, pool, builder.choose("tensor", "tensor", "tuple", "dict"))
    return randomise(net.double(), draw(st.integers(0, 2**16))).eval()


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and running statistic a random value: no layer is an identity then, and no tensor zero."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                noise = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                if name == "running_var":
                    tensor.copy_(0.5 + noise.abs())
                elif name in ("running_mean", "bias"):
                    tensor.copy_(0.3 * noise)
                elif isinstance(tensor, nn.Parameter):
                    tensor.copy_(noise * (1.5 / fan_in) ** 0.5 if fan_in > 1 else 1 + 0.3 * noise)
    return model
