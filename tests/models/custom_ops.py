"""Ops of a library of the tests' own, of which layerprune knows nothing until they are registered."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nets import conv


def _define(name, function, fake, backward=None):
    """Define a custom op with a fake form; sums and the like have a backward, too."""
    op = torch.library.custom_op(f"lp_tests::{name}", function, mutates_args=())
    op.register_fake(fake)
    if backward is not None:
        op.register_autograd(backward)
    return op


def _sum(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def _weighted(a: Tensor, b: Tensor) -> Tensor:
    return a + 0.5 * b


def _saturated(a: Tensor, b: Tensor) -> Tensor:
    return (a + b).clamp(-50, 50)


def _concat(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors, 1)


def _backwards(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors[::-1], 1)


def _rectify(x: Tensor) -> Tensor:
    return x.clamp_min(0)


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _swap(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def _turn(x: Tensor) -> Tensor:
    return x.flip(1)


def _sorted(x: Tensor) -> Tensor:
    return x.sort(1).values.clone()


def _matrix(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.t()


def _same(x, *_):
    return torch.empty_like(x)


def _joined(tensors):
    num, _, *places = tensors[0].shape
    return tensors[0].new_empty(num, sum(tensor.shape[1] for tensor in tensors), *places)


join = _define("join", _sum, _same, lambda _, grad: (grad, grad))
gate = _define("gate", _product, _same)
weighted = _define("weighted", _weighted, _same)
saturated = _define("saturated", _saturated, _same)
concat = _define("concat", _concat, _joined)
backwards = _define("backwards", _backwards, _joined)
rectify = _define("rectify", _rectify, _same)
mixed = _define("mixed", _softmax, _same)
halve = _define("halve", _halve, lambda x: x.new_empty(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2))
swap = _define("swap", _swap, _same)
turn = _define("turn", _turn, _same)
ordered = _define("ordered", _sorted, _same)
matrix = _define("matrix", _matrix, lambda x, weight: x.new_empty(*x.shape[:-1], weight.shape[0]))


class CustomNet(nn.Module):
    """Sums, concats, activations, pools and shuffles, all by ops of a library of its own; any can be another one."""

    def __init__(self, **ops: str) -> None:
        super().__init__()
        self.ops = {"add": "join", "cat": "concat", "act": "rectify", "pool": "halve", "move": "turn", **ops}
        self.stem, self.mix = conv(3, 8), conv(16, 8)
        self.a1, self.a2, self.b, self.c = conv(8, 12), conv(12, 8), conv(8, 6), conv(8, 10)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        names = self.ops
        add, cat = getattr(torch.ops.lp_tests, names["add"]), getattr(torch.ops.lp_tests, names["cat"])
        act, pool = getattr(torch.ops.lp_tests, names["act"]), getattr(torch.ops.lp_tests, names["pool"])
        move = getattr(torch.ops.lp_tests, names["move"])
        x = self.stem(x)
        x = add(x, act(self.a2(act(self.a1(x)))))
        x = move(pool(act(cat([self.b(x), self.c(x)]))))
        return self.head(torch.relu(self.mix(x)).mean((2, 3)))
