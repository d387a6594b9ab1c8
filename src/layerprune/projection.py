"""Projections: a tensor as a linear function of an earlier one, and the transforms that can take one in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from layerprune.edits import Fold
from layerprune.errors import SurgeryError
from layerprune.journal import Journal

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: The weight, and the bias where there is one, of transforms that have taken a projection in.
Folded: TypeAlias = Mapping[Fold, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Projection:
    """``y ≈ left · right · x + constant``, place by place.

    Attributes:
        left: ``(channel of y, rank)``.
        right: ``(rank, channel of x)``; None for the identity, where ``left`` is the whole matrix.
        constant: ``(channel of y,)``; None for 0.
    """

    left: Tensor
    right: Tensor | None = None
    constant: Tensor | None = None

    def of(self, rows: Tensor) -> Tensor:
        """Project rows, ``(row, channel of x)``."""
        inner = rows if self.right is None else rows @ self.right.T
        found = inner @ self.left.T
        return found if self.constant is None else found + self.constant

    def after(self, matrix: Tensor) -> Tensor:
        """Multiply a matrix, ``(…, channel of y)``, with the projection's: ``(…, channel of x)``."""
        product = matrix.to(self.left.dtype) @ self.left
        return product if self.right is None else product @ self.right


def why_not_foldable(module: nn.Module) -> str:
    """Why a transform cannot take a projection of what it reads in; empty if it can."""
    known = next((known for known in (nn.Linear, *_CONVS) if type(module).forward is known.forward), None)
    if known is None:
        return f"is a {type(module).__name__}, which no projection can be folded into"
    if isinstance(module, _ConvNd) and module.groups > 1:
        return f"is a convolution of {module.groups} groups, which no projection can be folded into"
    weight = module._parameters.get("weight")
    if weight is None or module._forward_pre_hooks or ("forward" in vars(module) and not _answers(module)):
        return "computes its weight or its input in a way of its own (a parametrization or a hook)"
    if not weight.is_floating_point():
        return "holds a quantised weight"
    return ""


def _answers(module: nn.Module) -> bool:
    """Whether a forward of the module's own is only the memo that proofs put there."""
    return getattr(vars(module)["forward"], "__qualname__", "").startswith("Memo.")


def num_in(module: nn.Module) -> int:
    """How many channels a transform reads."""
    return module.in_features if isinstance(module, nn.Linear) else cast(_ConvNd, module).in_channels


def growth(module: nn.Module, edit: Fold) -> int:
    """How many elements more a transform's weight has once it has taken a projection in; below 0 for fewer."""
    weight = cast(Tensor, module.weight)
    return weight.numel() // num_in(module) * (edit.num_in - num_in(module))


def strides_of(module: nn.Module, before: tuple[int, ...], now: tuple[int, ...]) -> tuple[int, ...] | None:
    """Every how many-th place of what a transform is to read stands for one of what it read, for each axis.

    Args:
        module: the transform.
        before: the shape of what it read.
        now: the shape of what it is to read.

    Returns:
        The strides, none of a linear layer; None where the one is no subsampling of the other that the transform could
        do along.
    """
    if len(before) != len(now):
        return None
    if isinstance(module, nn.Linear):
        return () if before[:-1] == now[:-1] else None
    assert isinstance(module, _ConvNd)
    if len(before) != len(module.kernel_size) + 2 or before[0] != now[0]:
        return None
    strides = tuple(-(-n // b) for b, n in zip(before[2:], now[2:], strict=True))
    fits = all(-(-n // s) == b for b, n, s in zip(before[2:], now[2:], strides, strict=True))
    if not fits or (max(strides) > 1 and (module.padding_mode != "zeros" or module.padding == "same")):
        return None
    return strides


def takes_constant(module: nn.Module) -> bool:
    """Whether a constant can be folded into a transform's bias: not where it pads with zeros, nor without a bias."""
    if module._parameters.get("bias") is None:
        return False
    if isinstance(module, nn.Linear):
        return True
    assert isinstance(module, _ConvNd)
    padded = module.padding not in ("valid", (0,) * len(module.kernel_size))
    return not padded or module.padding_mode != "zeros"


def folded(module: nn.Module, projection: Projection) -> dict[str, Tensor]:
    """The weight and bias with which a transform makes of ``x`` what it makes of the projection of ``x``.

    Args:
        module: the transform as it was.
        projection: what to fold in.
    """
    weight = cast(Tensor, module.weight).detach()
    found = {"weight": projection.after(weight.movedim(1, -1)).movedim(-1, 1).to(weight.dtype).contiguous()}
    bias = module._parameters.get("bias")
    if bias is not None:
        found["bias"] = bias.detach().clone()
        if projection.constant is not None:
            flat = weight.to(projection.left.dtype).flatten(2).sum(2) if weight.dim() > 2 else weight
            moved = flat.to(projection.left.dtype) @ projection.constant
            found["bias"] = (bias.detach().to(moved.dtype) + moved).to(bias.dtype)
    return found


def resize(module: nn.Module, edit: Fold, values: Mapping[str, Tensor] | None, journal: Journal) -> None:
    """Let a transform read another tensor, with the weights given, or zeros until there are some.

    Raises:
        SurgeryError: the module cannot take a projection in, or the weights do not fit it.
    """
    reason = why_not_foldable(module)
    if reason:
        raise SurgeryError(f"cannot {edit}: it {reason}")
    weight = cast(Tensor, module._parameters["weight"])
    shape = (weight.shape[0], edit.num_in, *weight.shape[2:])
    new = weight.detach().new_zeros(shape) if values is None else values["weight"]
    if new.shape != torch.Size(shape):
        raise SurgeryError(f"cannot {edit}: its weight would be {tuple(new.shape)}, not {shape}")
    changed = {"in_features": edit.num_in} if isinstance(module, nn.Linear) else _settings(cast(_ConvNd, module), edit)
    registry = cast("dict[str, Any]", module._parameters)
    journal.set(registry, "weight", nn.Parameter(new, weight.requires_grad))
    bias = registry.get("bias")
    if bias is not None:
        own = bias.detach().clone() if values is None else values["bias"]
        journal.set(registry, "bias", nn.Parameter(own, bias.requires_grad))
    for name, value in changed.items():
        journal.set_attribute(module, name, value)


def _settings(module: _ConvNd, edit: Fold) -> dict[str, object]:
    """A convolution's settings once every so many-th place of its input counts."""
    if len(edit.strides) != len(module.kernel_size):
        raise SurgeryError(f"cannot {edit}: it has {len(module.kernel_size)} axes, not {len(edit.strides)}")
    found: dict[str, object] = {"in_channels": edit.num_in}
    if max(edit.strides) > 1:

        def times(sizes: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(size * stride for size, stride in zip(sizes, edit.strides, strict=True))

        found |= {"stride": times(module.stride), "dilation": times(module.dilation)}
        if isinstance(module.padding, tuple):
            padding = times(module.padding)
            found["padding"] = padding
            found["_reversed_padding_repeated_twice"] = [size for size in reversed(padding) for _ in range(2)]
    return found
