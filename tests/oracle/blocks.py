"""The blocks of the oracle's random networks: each a pattern that real models are made of, in the styles they use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Stem, body, head; the body is a ``Sequential``, a loop over a ``ModuleList``, or attributes called one by one."""

    def __init__(
        self, stem: nn.Module, body: Sequence[nn.Module], head: nn.Module, image: bool, form: str, pool: str, out: str
    ) -> None:
        super().__init__()
        self.stem = stem
        self.form, self.pool, self.out, self.image = form, pool, out, image
        self.body = nn.ModuleList(body) if form == "list" else nn.Sequential(*body)
        self.head = head

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        if self.form == "sequential":
            x = self.body(x)
        else:
            for block in self.body:
                x = block(x)
        if self.pool == "flatten":
            pooled = torch.flatten(F.adaptive_avg_pool2d(x, 2), 1) if self.image else x.reshape(x.shape[0], -1)
        else:
            pooled = x.mean((2, 3)) if self.image else x.mean(1)
        logits = self.head(pooled)
        return {"tensor": logits, "tuple": (logits, pooled), "dict": {"logits": logits, "features": x}}[self.out]

    def extra_repr(self) -> str:
        return f"{self.form}, {self.pool}, {self.out}"


class Styled(nn.Module):
    """A module whose forward comes in several styles; the style shows in its ``repr``."""

    def __init__(self, style: str = "", **parts: Any) -> None:
        super().__init__()
        self.style = style
        for name, part in parts.items():
            setattr(self, name, part)

    def extra_repr(self) -> str:
        return self.style


class Unit(Styled):
    """Transform, norm, activation; the latter two may be missing (None)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.transform(x)
        x = x if self.norm is None else self.norm(x)
        return _activate(self.style, self.act, x)


def _activate(style: str, act: nn.Module | None, x: Tensor) -> Tensor:
    if style == "module":
        return x if act is None else act(x)
    if style == "function_":
        return F.relu(x, inplace=True)
    if style == "method_":
        return x.relu_()
    return {"function": F.relu, "torch": torch.relu, "method": Tensor.relu, "gelu": F.gelu, "none": lambda t: t}[style](
        x
    )


class Own(Styled):
    """A transform without a module of its own: ``F.linear`` or ``F.conv2d`` with the block's own parameters."""

    def __init__(self, c_in: int, c_out: int, image: bool) -> None:
        super().__init__("conv2d" if image else "linear")
        self.weight = nn.Parameter(torch.zeros(c_out, c_in, 3, 3) if image else torch.zeros(c_out, c_in))
        self.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "linear":
            return F.relu(F.linear(x, self.weight, self.bias))
        return F.relu(F.conv2d(x, self.weight, self.bias, padding=1))


class Residual(Styled):
    """``x + f(x)``, in all the ways that it is written."""

    def __init__(
        self, style: str, f: nn.Module, shortcut: nn.Module | None, post: nn.Module | None, gamma: Tensor | None
    ) -> None:
        super().__init__(style, f=f, shortcut=shortcut, post=post)
        self.gamma = None if gamma is None else nn.Parameter(gamma)

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.shortcut is None else self.shortcut(x)
        out = self.f(x)
        out = out if self.gamma is None else self.gamma * out
        out = self.add(kept, out)
        return out if self.post is None else self.post(out)

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        match self.style:
            case "x + f":
                return x + out
            case "f + x":
                return out + x
            case "f += x":
                out += x
                return out
            case "x += f":
                x = x.clone() if x.is_leaf else x
                x += out
                return x
            case "f.add_(x)":
                return out.add_(x)
            case "torch.add":
                return torch.add(x, out)
            case "alpha":
                return torch.add(x, out, alpha=0.5)
            case "half":
                return x + 0.5 * out
            case "x - f":
                return x - out
            case _:
                return x.add(out)


#: The styles of a :class:`Residual`.
RESIDUALS = ("x + f", "f + x", "f += x", "x += f", "f.add_(x)", "torch.add", "alpha", "half", "x - f", "x.add(f)")


class Basic(Styled):
    """ResNet's basic block: one in-place ReLU called twice, an in-place sum, maybe a projection."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Gate(Styled):
    """Squeeze-and-excite: the mean, two transforms, a sigmoid, a product."""

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True) if x.dim() == 4 else x.mean(1, keepdim=True)
        s = self.fc2(F.relu(self.fc1(s)))
        s = torch.sigmoid(s) if self.gate is None else self.gate(s)
        match self.style:
            case "x * s":
                return x * s
            case "s * x":
                return s * x
            case "torch.mul":
                return torch.mul(x, s)
            case _:
                return x.mul(s)


class Glu(Styled):
    """``f(x) * sigmoid(g(x))``, then a transform."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.f(x) * torch.sigmoid(self.g(x)))


class Inception(Styled):
    """Branches, maybe the input among them, joined along the channels; then maybe a norm, an activation, a pool."""

    def forward(self, x: Tensor) -> Tensor:
        found = [branch(x) for branch in self.branches]
        if "input" in self.style:
            found.insert(len(found) // 2, x)
        if "twice" in self.style:
            found.append(found[0])
        dim = 1 if x.dim() == 4 else -1
        if "keyword" in self.style:
            x = torch.cat(tensors=tuple(found), dim=dim)
        else:
            x = (
                torch.concat(found, dim)
                if "concat" in self.style
                else torch.cat(found, dim - x.dim() if dim == 1 else dim)
            )
        for layer in self.between:
            x = layer(x)
        return self.fuse(x)


class Tied(Styled):
    """Two transforms with one weight, or one that uses another's weight."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.f(x))
        if self.style == "tied":
            return self.g(x)
        if x.dim() == 4:
            return F.conv2d(x, self.f.weight, self.bias, padding=1)
        return F.linear(x, self.f.weight, self.bias)


class Dense(Styled):
    """DenseNet: each layer reads all tensors before it, joined; so does what follows."""

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.fuse(torch.cat(features, 1))


class Skip(Styled):
    """U-Net: down, something, up to the size of the input, joined with it."""

    def forward(self, x: Tensor) -> Tensor:
        low = self.f(F.avg_pool2d(x, 2))
        size = x.shape[-2:]
        high = F.interpolate(low, size=size, mode="nearest") if self.style == "interpolate" else self.up(low)
        return self.fuse(torch.cat([x, high], dim=1))


class Split(Styled):
    """ShuffleNet: half of the channels goes through ``f``; joined, and maybe shuffled."""

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        x = torch.cat((one, self.f(two)), dim=1)
        if self.style == "shuffle":
            n, c, h, w = x.size()
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return x


class Pair(Styled):
    """Returns two tensors, as a tuple, a list or a dict."""

    def forward(self, hidden: Tensor, scale: float = 1.0) -> Any:
        a, b = self.f(hidden), self.g(hidden)
        b = b * scale
        return {"tuple": (a, b), "list": [a, b], "dict": {"a": a, "b": b}, "same": (a, None)}[self.style]


class Paired(Styled):
    """Unpacks what a :class:`Pair` returns, called by position or by keyword, and adds it to its input."""

    def forward(self, x: Tensor) -> Tensor:
        pair = self.pair(hidden=x) if self.style == "keyword" else self.pair(x, scale=0.5)
        if isinstance(pair, dict):
            return x + pair["a"] + pair["b"]
        a, b = pair
        return x + a if b is None else x + a * b


class Shared(Styled):
    """One module called twice."""

    def forward(self, x: Tensor) -> Tensor:
        match self.style:
            case "f(f(x))":
                return self.f(self.f(x))
            case "x + f(f(x))":
                return x + self.f(self.f(x))
            case "two residuals":
                x = x + self.f(x)
                return x + self.f(x)
            case _:
                return self.f(x) + self.f(self.g(x))


class TwiceRead(Styled):
    """``t = f(x)`` is read by two sums."""

    def forward(self, x: Tensor) -> Tensor:
        t = self.f(x)
        return self.g(x + t) + t


class Summed(Styled):
    """Branches that a Python ``sum`` or a loop of in-place sums adds up."""

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "sum":
            return sum(branch(x) for branch in self.branches)
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out += branch(x)
        return out


class SliceWrite(Styled):
    """Writes what ``f`` makes into a part of a copy of its input."""

    def forward(self, x: Tensor) -> Tensor:
        out = x.clone()
        out[:, :1] = self.f(x)[:, :1]
        return out + x if self.style == "added" else out


class Attention(Styled):
    """Single-head self-attention, by functions, by matmul, or as torch's own module."""

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "module":
            return x + self.attention(x, x, x, need_weights=False)[0]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.style == "function":
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = ((q @ k.transpose(-2, -1)) / k.shape[-1] ** 0.5).softmax(-1) @ v
        return x + self.out(out)


class DropPath(nn.Module):
    """Stochastic depth as timm writes it: the input itself in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.7)
        return x * mask
