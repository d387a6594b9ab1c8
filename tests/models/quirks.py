"""Models with quirks, one a function: what users bring that copies, hooks, runs or returns something odd.

Each is a small residual network in train mode, of which something can go, with one thing about it that libraries tend
to trip over. Random weights are drawn from the global generator, so that two models made after the same seed are twins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from models.nets import Net, linear, rows


class Residual(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = linear(width, 2 * width), linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def plain() -> nn.Sequential:
    return nn.Sequential(linear(), Residual(), Residual(), Residual(), linear(8, 3))


def quirk(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    """A plain network after a change."""

    def build() -> nn.Module:
        model = plain()
        change(model)
        return model

    build.__name__ = getattr(change, "__name__", "quirk")
    return build


def around(forward: Callable[..., Any], **parts: Callable[[], Any]) -> Callable[[], nn.Module]:
    """A network with a forward of its own around ``net.body``, the residual blocks."""
    more = {"body": lambda: nn.Sequential(Residual(), Residual(), Residual()), **parts}
    return lambda: Net(forward, stem=linear(), head=linear(8, 3), **{name: make() for name, make in more.items()})


def body(net: Any, x: Tensor) -> Tensor:
    return net.head(net.body(net.stem(x)))


# ---- what cannot be copied -------------------------------------------------------------------------------------------


def old_weight_norm(model: nn.Module) -> None:
    """After a forward its weight is no leaf, which deepcopy refuses."""
    torch.nn.utils.weight_norm(model[2].up)
    model(rows())


def pruning_masks(model: nn.Module) -> None:
    prune.random_unstructured(model[2].up, "weight", amount=0.3)
    model(rows())


def cached_tensor(model: nn.Module) -> None:
    model[1].last = model[1].up(rows())


def open_file(model: nn.Module) -> None:
    model[1].log = tempfile.TemporaryFile()  # noqa: SIM115 (it stays open)


def lock(model: nn.Module) -> None:
    model[1].lock = threading.Lock()


def generator(model: nn.Module) -> None:
    model[1].numbers = (i for i in range(3))


def random_generator(model: nn.Module) -> None:
    model[1].generator = torch.Generator().manual_seed(3)


class NoCopy:
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("I am one of a kind")


def refuses_copy(model: nn.Module) -> None:
    model[1].special = {"one": [NoCopy()]}


def knows_its_parent(model: nn.Module) -> None:
    object.__setattr__(model[1], "parent", model)
    model[2].neighbours = [model[1]]


# ---- hooks and parametrizations --------------------------------------------------------------------------------------


def lambda_hook(model: nn.Module) -> None:
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    model[2].down.register_forward_hook(lambda module, args, out: out + 1)


def pre_hook(model: nn.Module) -> None:
    model[4].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model.register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs), with_kwargs=True)


def backward_hook(model: nn.Module) -> None:
    model[1].register_full_backward_hook(lambda module, given, taken: None)


def state_dict_hook(model: nn.Module) -> None:
    model[4].register_state_dict_post_hook(lambda module, state, prefix, meta: None)


def new_weight_norm(model: nn.Module) -> None:
    parametrizations.weight_norm(model[2].up)


def spectral_norm(model: nn.Module) -> None:
    parametrizations.spectral_norm(model[2].up)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def own_parametrization(model: nn.Module) -> None:
    parametrize.register_parametrization(model[1].down, "weight", Doubled())


# ---- other kinds of models -------------------------------------------------------------------------------------------


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), Residual(), linear())


def lazy_that_has_run() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(8), Residual(), Residual(), nn.LazyLinear(3))
    model(rows())
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return plain()


def scripted() -> nn.Module:
    return torch.jit.script(plain())


def scripted_part() -> nn.Module:
    model = plain()
    model[2] = torch.jit.script(model[2])
    return model


def traced() -> nn.Module:
    return torch.jit.trace(plain().eval(), rows())


def dynamically_quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(plain().eval(), {nn.Linear}, dtype=torch.qint8)


def one_part_quantised() -> nn.Module:
    model = plain().eval()
    torch.ao.quantization.quantize_dynamic(model, {"4"}, dtype=torch.qint8, inplace=True)
    return model


class Secretive(nn.Linear):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "secret"] = 42


def own_state() -> nn.Module:
    model = plain()
    model[4] = Secretive(8, 3)
    return model


def compiled() -> nn.Module:
    return torch.compile(plain(), backend="eager")


def data_parallel() -> nn.Module:
    return nn.DataParallel(plain())


def no_parameters() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Flatten())


def only_norms() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(8), nn.ReLU())


# ---- dtypes, values, sharing -----------------------------------------------------------------------------------------


def frozen(model: nn.Module) -> None:
    model.requires_grad_(False)


def half_frozen(model: nn.Module) -> None:
    model[1].requires_grad_(False)


def nan_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model[1].up.weight[0, 0] = float("nan")


def infinite_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model[4].weight[0, 0] = float("inf")


def zero_weights(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


def gradients(model: nn.Module) -> None:
    model(rows()).sum().backward()


def batch_norm() -> nn.Module:
    """In train mode a batch of one has no variance."""
    norms = [nn.Sequential(linear(), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(linear(), *norms, linear(8, 3))


def shared_buffers(model: nn.Module) -> None:
    scale = torch.rand(16)
    for i in (1, 2, 3):
        model[i].register_buffer("scale", scale)


def unsaved_buffer(model: nn.Module) -> None:
    model[3].register_buffer("table", torch.rand(8), persistent=False)


def tied_weights(model: nn.Module) -> None:
    model[3].up.weight = model[1].up.weight


def one_memory(model: nn.Module) -> None:
    model[3].up.weight = nn.Parameter(model[1].up.weight.data)


def expanded_weight(model: nn.Module) -> None:
    """All rows are one row in memory."""
    model[4].weight = nn.Parameter(torch.rand(1, 8).expand(3, 8))


def transposed_weight(model: nn.Module) -> None:
    model[4].weight = nn.Parameter(torch.rand(8, 3).t())


def inference_weights() -> nn.Module:
    with torch.inference_mode():
        return plain()


def empty_layer(model: nn.Module) -> None:
    model[2].extra = nn.Linear(8, 0)


def unused_layer(model: nn.Module) -> None:
    model[2].extra = linear()


def complex_numbers() -> nn.Module:
    return nn.Sequential(*(linear() for _ in range(5))).to(torch.complex64)


# ---- names -----------------------------------------------------------------------------------------------------------


def odd_names(model: nn.Module) -> None:
    for name in ("ein Block", "блок", "a/b", "0"):
        model[1].add_module(name, nn.Identity())
    model[2] = nn.ModuleDict({"training ": Residual()})["training "]


def dotted_name() -> nn.Module:
    """No module may be called so; torch checks where modules are added, and nowhere else."""
    model = plain()
    model[1]._modules["up.proj"] = model[1]._modules.pop("up")
    model[1].forward = lambda x: x + model[1].down(torch.relu(model[1]._modules["up.proj"](x)))
    return model


def two_names(model: nn.Module) -> None:
    """One block hangs in another, too, where nobody calls it."""
    model[2].neighbour = model[1]


# ---- forwards --------------------------------------------------------------------------------------------------------


def counts_calls() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        net.calls = getattr(net, "calls", 0) + 1
        net.seen += x.shape[0]
        return body(net, x)

    return around(forward, seen=lambda: torch.zeros((), dtype=torch.long))()


def keeps_outputs() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        out = body(net, x)
        net.history.append(out)
        return out

    model = around(forward)()
    model.history = []
    return model


def writes_into_its_input() -> nn.Module:
    return around(lambda net, x: body(net, x.mul_(2)))()


def draws_numbers() -> nn.Module:
    return around(lambda net, x: body(net, x) + 0 * torch.rand(1))()


def goes_through_numpy() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return body(net, x) + torch.from_numpy(numpy.ones(3, dtype=numpy.float32))

    return around(forward)()


def asks_a_value() -> nn.Module:
    return around(lambda net, x: body(net, x if float(x.sum()) < 1e9 else -x))()


def without_grad() -> nn.Module:
    return around(torch.no_grad()(body))()


def in_inference_mode() -> nn.Module:
    return around(torch.inference_mode()(body))()


def under_autocast() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return body(net, x).float()

    return around(forward)()


def warns() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        import warnings

        warnings.warn("this model is old", UserWarning, stacklevel=2)
        return body(net, x)

    return around(forward)()


def raises() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        body(net, x)
        raise KeyError("the cache is cold")

    return around(forward)()


def forward_replaced(model: nn.Module) -> None:
    """As quantisers and offloaders do."""
    old = model[2].forward
    model[2].forward = lambda x: old(x) * 1.0


def called_twice() -> nn.Module:
    twin = Residual()
    return nn.Sequential(linear(), twin, Residual(), twin, linear(8, 3))


def function_from_outside() -> nn.Module:
    outside = linear()
    return around(lambda net, x: body(net, outside(x)))()


def modules_in_a_list() -> nn.Module:
    model = around(lambda net, x: body(net, net.hidden[0](x)))()
    model.hidden = [linear()]
    return model


def local_class() -> nn.Module:
    class Local(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = layer(x)
            return F.relu(x)

    return Local(*plain())


def property_that_raises() -> nn.Module:
    class Guarded(nn.Sequential):
        @property
        def secret(self) -> Any:
            raise RuntimeError("not for you")

        def __getattr__(self, name: str) -> Any:
            if name == "anything":
                raise ValueError("nor this")
            return super().__getattr__(name)

    return Guarded(*plain())


def context_inside() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(0)
            return body(net, x)

    return around(forward)()


# ---- inputs and outputs ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Request:
    x: Tensor
    flags: dict[str, Any]


class Answer(NamedTuple):
    logits: Tensor
    note: str


def takes_none() -> nn.Module:
    return around(lambda net, x, mask: body(net, x) if mask is None else body(net, x * mask))()


def takes_an_int() -> nn.Module:
    return around(lambda net, x, steps: body(net, x) * steps)()


def takes_a_string() -> nn.Module:
    return around(lambda net, x, mode: body(net, x) if mode == "plain" else x)()


def takes_nested() -> nn.Module:
    return around(lambda net, batch: body(net, batch["features"][0]["x"]))()


def takes_a_dataclass() -> nn.Module:
    return around(lambda net, request: body(net, request.x) * request.flags["scale"])()


def takes_keywords() -> nn.Module:
    return around(lambda net, *, x, scale=1.0: body(net, x) * scale)()


def returns_nothing() -> nn.Module:
    return around(lambda net, x: None)()


def returns_a_number() -> nn.Module:
    return around(lambda net, x: float(body(net, x).sum()))()


def returns_a_loss() -> nn.Module:
    return around(lambda net, x: body(net, x).square().mean())()


def returns_a_mixture() -> nn.Module:
    return around(lambda net, x: {"answer": Answer(body(net, x), "fine"), "count": 3, "none": None})()


def returns_a_dataclass() -> nn.Module:
    return around(lambda net, x: Request(body(net, x), {"done": True}))()


def returns_its_input() -> nn.Module:
    return around(lambda net, x: (body(net, x), x))()
