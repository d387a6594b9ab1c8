"""The memo: what torch's own layers make of a shape, remembered, so that many proofs cost little more than one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules import batchnorm, conv, dropout, pooling
from torch.utils._python_dispatch import _disable_current_modes

# Layers of one tensor, whose output's shape follows from their settings, their parameters' shapes and the input's.
_PURE = (
    *(nn.Linear, conv._ConvNd, batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding),
    *(
        pooling._MaxPoolNd,
        pooling._AvgPoolNd,
        pooling._AdaptiveAvgPoolNd,
        pooling._AdaptiveMaxPoolNd,
        dropout._DropoutNd,
    ),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.Mish),
)


#: Sees a layer's call: the layer, its input, and the two ways to run it: from memory, or really.
Observer = Callable[[nn.Module, Tensor, Callable[[Tensor], Any], Callable[..., Any]], Any]


class Memo:
    """Remembers, per kind of layer and shape of input, the shape of the output of fake forwards.

    Args:
        mode: the mode of the fake tensors that run through the layers.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.known: dict[tuple[Any, ...], Tensor] = {}
        self.observer: Observer | None = None

    def attach(self, model: nn.Module, leaves: Collection[str]) -> None:
        """Let the layers of a shadow answer from the memo. Edited layers are other layers: their shapes tell.

        Args:
            model: the shadow's model.
            leaves: names of custom leaf modules that make one tensor of one tensor and write into none.
        """
        for name, module in model.named_modules():
            own = isinstance(module, _PURE) and type(module).__module__.startswith("torch.nn.")
            if (own or name in leaves) and not getattr(module, "inplace", False) and "forward" not in vars(module):
                kind = (type(module), module.extra_repr()) if own else (id(module),)
                vars(module)["forward"] = self.answering(kind, module, module.forward)

    def answering(self, kind: tuple[Any, ...], module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:

        def answer(*args: Any, **kwargs: Any) -> Any:
            if kwargs or len(args) != 1 or type(args[0]) is not FakeTensor:
                return forward(*args, **kwargs)
            if self.observer is not None:
                return self.observer(module, args[0], recall, forward)
            return recall(args[0])

        def recall(x: Tensor) -> Any:
            shapes = tuple(None if p is None else p.shape for p in module._parameters.values())
            key = (*kind, module.training, shapes, x.shape, x.stride(), x.dtype, x.device)
            like = self.known.get(key)
            if like is not None:
                return self.fake(like)
            out = forward(x)
            if type(out) is FakeTensor and out is not x:
                self.known[key] = out
            return out

        return answer

    def fake(self, like: Tensor) -> Tensor:
        """Make a fake tensor of another one's form."""
        with _disable_current_modes():
            meta = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
            return FakeTensor(self.mode, meta, like.device)
