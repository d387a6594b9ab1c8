"""Forwards that are hard to record, each with the dependencies that a right layer graph has.

A case maps consumers to the layers whose output must reach them directly, with no other layer that holds parameters in
between. ``""`` is the model itself, where it applies a parameter in its own forward; ``a#1`` is the second
call of ``a``. What cannot be recorded by design is in :data:`BLIND`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from models.nets import Net, linear, rows, tokens


@dataclass(frozen=True)
class Case:
    forward: Callable[..., Any]
    parts: Mapping[str, Callable[[], Any]]
    expected: Mapping[str, set[str]]
    inputs: Callable[[], Tensor]

    def build(self) -> Net:
        return Net(self.forward, **{name: make() for name, make in self.parts.items()})


CASES: dict[str, Case] = {}

#: Why a dependency is lost, for the two cases in which it is; the library must say so, or keep the layer whole.
BLIND = {
    "numpy_roundtrip": "numpy hands on values, not tensors: the edge is lost, and a note says so",
    "cond": "torch.cond is one opaque layer: what runs in its branches is not seen",
}


def case(expected, inputs=rows, **parts):
    def add(forward):
        CASES[forward.__name__] = Case(forward, parts, expected, inputs)
        return forward

    return add


# ---- writes in place -------------------------------------------------------------------------------------------------


@case({"c": {"a", "b"}}, a=linear, b=linear, c=linear)
def inplace_add(net, x):
    y = net.a(x)
    z = net.b(y)
    z += y
    return net.c(F.relu(z, inplace=True))


@case({"c": {"a", "b"}}, a=linear, b=linear, c=linear)
def write_through_a_view(net, x):
    y = net.a(x)
    view = y[:, :4]
    view.add_(net.b(x)[:, :4])
    return net.c(y)


@case({"c": {"a", "b"}}, a=linear, b=linear, c=linear)
def setitem(net, x):
    y = net.a(x)
    y[:, :4] = net.b(x)[:, :4]
    return net.c(y)


@case({"c": {"a", "b"}}, a=linear, b=linear, c=linear)
def out_argument(net, x):
    buffer = torch.empty(x.shape)
    torch.add(net.a(x), net.b(x), out=buffer)
    return net.c(buffer)


@case({"c": {"a", "b"}}, a=linear, b=linear, c=linear)
def copies_into_a_buffer(net, x):
    buffer = x.new_zeros(x.shape[0], 2, 8)
    buffer[:, 0].copy_(net.a(x))
    buffer[:, 1].copy_(net.b(x))
    return net.c(buffer)


@case({"c": {"a"}}, a=linear, c=linear)
def set_storage(net, x):
    y = net.a(x)
    z = torch.empty(0)
    z.set_(y)
    return net.c(z)


# ---- views and aliases -----------------------------------------------------------------------------------------------


@case({"c": {"a"}}, a=linear, c=linear)
def data_attribute(net, x):
    return net.c(net.a(x).data)


@case({"c": {"a"}}, a=linear, c=linear)
def detach(net, x):
    return net.c(net.a(x).detach())


@case({"c": {"a"}}, a=linear, c=lambda: linear(4))
def unfold(net, x):
    return net.c(net.a(x).unfold(1, 4, 2))


@case({"c": {"a", "b"}}, a=linear, b=linear, c=linear)
def chunk_and_split(net, x):
    p, _ = net.a(x).chunk(2, 1)
    _, q = torch.split(net.b(x), 4, 1)
    return net.c(torch.cat([p, q], 1))


@case({"c": {"a", "b"}}, a=linear, b=linear, c=linear)
def list_in_an_attribute(net, x):
    net.history = [net.a(x)]
    net.history.append(net.b(x))
    return net.c(torch.stack(net.history).sum(0))


# ---- parameters used directly, modules used oddly --------------------------------------------------------------------


@case({"": {"a"}}, a=linear, c=linear)
def linear_function(net, x):
    return F.linear(net.a(x), net.c.weight, net.c.bias)


@case({"": {"a"}}, a=linear, c=linear)
def matmul_with_a_transposed_parameter(net, x):
    return net.a(x) @ net.c.weight.T


@case({"c": {"a"}}, a=linear, c=linear)
def forward_called_directly(net, x):
    return net.c.forward(net.a(x))


@case({"a#1": {"a"}, "b": {"a#1"}}, a=linear, b=linear)
def one_module_twice(net, x):
    return net.b(net.a(net.a(x)))


@case(
    {"c": {"a"}},
    a=lambda: parametrizations.weight_norm(linear()),
    c=lambda: parametrizations.spectral_norm(linear()),
)
def parametrized_weights(net, x):
    return net.c(net.a(x))


@case({"c": {"a"}}, a=lambda: nn.utils.weight_norm(linear()), c=lambda: nn.utils.spectral_norm(linear()))
def weights_made_by_hooks(net, x):
    return net.c(net.a(x))


@case({"c": {"a"}}, a=linear, c=linear)
def functional_call(net, x):
    return net.c(torch.func.functional_call(net.a, {"weight": net.a.weight * 2}, (x,)))


# ---- fused paths -----------------------------------------------------------------------------------------------------


@case({"c": {"m"}, "m": {"a"}}, tokens, a=linear, m=lambda: nn.MultiheadAttention(8, 2, batch_first=True), c=linear)
def multihead_attention(net, x):
    y = net.a(x)
    return net.c(net.m(y, y, y, need_weights=False)[0])


@case(
    {"c": {"m.linear2", "m.self_attn"}, "m.linear2": {"m.linear1"}},
    tokens,
    m=lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
    c=linear,
)
def encoder_layer_with_a_fast_path(net, x):
    return net.c(net.m(x))


@case({"c": {"a", "b"}}, tokens, a=linear, b=linear, c=linear)
def scaled_dot_product_attention(net, x):
    query, key = net.a(x), net.b(x)
    return net.c(F.scaled_dot_product_attention(query, key, key))


@case({"c": {"m"}, "m": {"a"}}, tokens, a=linear, m=lambda: nn.LSTM(8, 8, batch_first=True), c=linear)
def lstm(net, x):
    return net.c(net.m(net.a(x))[0])


# ---- autograd, checkpoints, modes ------------------------------------------------------------------------------------


@case({"c": {"b"}, "b": {"a"}}, a=linear, b=linear, c=linear)
def checkpoint_non_reentrant(net, x):
    return net.c(checkpoint(lambda t: net.b(F.relu(net.a(t))), x, use_reentrant=False))


@case({"c": {"b"}, "b": {"a"}}, a=linear, b=linear, c=linear)
def checkpoint_reentrant(net, x):
    return net.c(checkpoint(lambda t: net.b(F.relu(net.a(t))), x, use_reentrant=True))


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class _DoubleInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, grad):
        return grad


class _View(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


@case({"c": {"a"}}, a=linear, c=linear)
def autograd_function(net, x):
    return net.c(_Swish.apply(net.a(x)))


@case({"c": {"a"}}, a=linear, c=linear)
def autograd_function_in_place(net, x):
    return net.c(_DoubleInPlace.apply(net.a(x)))


@case({"c": {"a"}}, a=linear, c=linear)
def autograd_function_that_views(net, x):
    return net.c(_View.apply(net.a(x)))


@case({"c": {"a"}}, a=linear, c=linear)
def autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.c(net.a(x))


@case({"c": {"a"}}, a=linear, c=linear)
def no_grad_inside(net, x):
    with torch.no_grad():
        y = net.a(x)
    return net.c(y)


@case({"c": {"a"}}, a=linear, c=linear)
def inference_mode_inside(net, x):
    with torch.inference_mode():
        y = net.a(x)
        y += 1
        return net.c(y)


# ---- compiled and transformed code -----------------------------------------------------------------------------------


def _swish_plus_one(x):
    return x * torch.sigmoid(x) + 1


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    _scripted = torch.jit.script(_swish_plus_one)


@case({"c": {"a"}}, a=linear, c=linear)
def scripted_function(net, x):
    return net.c(_scripted(net.a(x)))


@case({"c": {"m"}, "m": {"a"}}, a=linear, m=lambda: torch.jit.script(nn.Sequential(linear(), nn.ReLU())), c=linear)
def scripted_module(net, x):
    return net.c(net.m(net.a(x)))


@case({"c": {"a"}}, a=linear, c=linear)
def compiled_function(net, x):
    return net.c(torch.compile(lambda t: t * torch.sigmoid(t), backend="eager")(net.a(x)))


@case({"c": {"a"}}, a=linear, c=linear)
def vmap(net, x):
    return net.c(torch.vmap(lambda t: t * 2 + 1)(net.a(x)))


@case({"c": {"a"}}, a=linear, c=linear)
def vmap_over_a_module(net, x):
    return net.c(torch.vmap(lambda t: net.a(t))(x))


# ---- control flow that depends on data, values that leave torch ------------------------------------------------------


@case({"c": {"a"}}, a=linear, c=linear)
def numpy_roundtrip(net, x):
    return net.c(torch.from_numpy(net.a(x).numpy() * 2))


@case({"c": {"a"}}, a=linear, c=linear)
def branch_on_a_sum(net, x):
    y = net.a(x)
    return net.c(y if y.sum() > 0 else -y)


@case({"c": {"a"}}, a=linear, c=linear)
def item(net, x):
    y = net.a(x)
    return net.c(y * y.abs().max().item())


@case(
    {"c": {"a", "e0", "e1", "r"}, "r": {"a"}, "e0": {"a", "r"}, "e1": {"a", "r"}},  # r says which rows an expert reads
    lambda: rows(16),
    a=linear,
    r=lambda: linear(8, 2),
    e0=linear,
    e1=linear,
    c=linear,
)
def mixture_of_experts(net, x):
    y = net.a(x)
    weights = net.r(y)
    top = weights.argmax(-1)
    out = torch.zeros_like(y)
    for i in top.unique().tolist():
        index = (top == i).nonzero()[:, 0]
        out.index_add_(0, index, getattr(net, f"e{i}")(y[index]) * weights[index, i : i + 1])
    return net.c(out + y)


@case({"c": {"a"}}, a=linear, c=linear)
def boolean_mask(net, x):
    y = net.a(x)
    return net.c(y[x[:, 0] > -100])


@case({"c": {"a", "b"}}, a=linear, b=linear, c=linear)
def cond(net, x):
    y = net.a(x)
    return net.c(torch.cond(y.sum() > 0, lambda t: net.b(t), lambda t: t + 1, (y,)))
