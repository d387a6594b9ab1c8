"""Folds a projection into the weights of the layers that read the projected tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from layerprune.channels import Reader, reader_for
from layerprune.edits import Fold
from layerprune.errors import SurgeryError
from layerprune.graph import Refusal
from layerprune.modules import UndoLog
from layerprune.torch_internals import PADDING_FOR_PAD, Conv, registry_of

#: Attributes for the number of input channels.
_WIDTHS = ("in_features", "in_channels", "nx")

#: Folded weights of transforms, and the tensors that hold the constants.
Folded: TypeAlias = Mapping[Fold, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Projection:
    """``y ≈ left · right · x + constant``, for each token or position.

    Attributes:
        left: ``(channel of y, rank)``.
        right: ``(rank, channel of x)``; None if ``left`` is the whole matrix.
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
        """Product of a matrix, ``(…, channel of y)``, and the projection: ``(…, channel of x)``."""
        product = matrix.to(self.left.dtype) @ self.left
        return product if self.right is None else product @ self.right


def folded(model: nn.Module, edit: Fold, projection: Projection) -> dict[str, Tensor]:
    """Weights with which a transform computes from ``x`` the result that it computed from ``y``.

    Args:
        model: the model, with the transform before the fold.
        edit: the fold.
        projection: the projection of ``x`` to ``y``; its constant is ignored if no tensor can hold it.

    Returns:
        ``weight``, in the weight's dtype, and ``constant`` if the edit names a tensor for it.
    """
    reader = reader_for(model.get_submodule(edit.owner), edit)
    weight = reader.dense()
    product = projection.after(weight.movedim(reader.axis, -1)).movedim(-1, reader.axis)
    found = {"weight": product.to(weight.dtype).contiguous()}
    if edit.constant is not None:
        held = _holder(model, edit.constant)[0]
        shift = torch.zeros_like(held) if projection.constant is None else _shift(reader, weight, projection.constant)
        # A bias is added to the output, a running mean is subtracted.
        wider = held.detach().to(shift.dtype)
        found["constant"] = (wider + shift if isinstance(held, nn.Parameter) else wider - shift).to(held.dtype)
    return found


def _shift(reader: Reader, weight: Tensor, constant: Tensor) -> Tensor:
    """Output of a transform for a constant input, ``(channel of its output,)``."""
    matrix = weight.movedim(reader.axis, 1).to(constant.dtype)
    return (matrix.flatten(2).sum(2) if matrix.dim() > 2 else matrix) @ constant


def resize(
    model: nn.Module, module: nn.Module, edit: Fold, values: Mapping[str, Tensor] | None, undo_log: UndoLog
) -> None:
    """Change the number of a transform's input channels, with the given weights, or zeros until there are some.

    Args:
        model: the model to edit.
        module: the module that owns the transform's weight.
        edit: the fold.
        values: the result of :func:`folded`.
        undo_log: records every change.

    Raises:
        SurgeryError: no projection can be folded into the transform, or the values have other shapes.
    """
    try:
        reader = reader_for(module, edit)
    except Refusal as why:
        raise SurgeryError(f"cannot {edit}: it {why}") from why
    weight = reader.tensor
    shape = list(weight.shape)
    shape[reader.axis] = edit.num_in
    new = weight.detach().new_zeros(shape) if values is None else values["weight"]
    if list(new.shape) != shape:
        raise SurgeryError(f"cannot {edit}: its weight would be {tuple(new.shape)}, not {tuple(shape)}")
    settings = _settings(reader, edit)
    _put(module, reader.weight, new, undo_log)
    if edit.constant is not None:
        _renew(model, edit, None if values is None else values["constant"], undo_log)
    for name, value in settings.items():
        undo_log.set_attribute(module, name, value)


def _renew(model: nn.Module, edit: Fold, value: Tensor | None, undo_log: UndoLog) -> None:
    """Replace the tensor that holds the constant, because another model may share its memory."""
    assert edit.constant is not None
    try:
        held, module = _holder(model, edit.constant)
    except AttributeError as error:
        raise SurgeryError(f"cannot {edit}: {type(model).__name__} has no '{edit.constant}'") from error
    if value is not None and value.shape != held.shape:
        raise SurgeryError(f"cannot {edit}: '{edit.constant}' would be {tuple(value.shape)}, not {tuple(held.shape)}")
    new = held.detach().clone() if value is None else value
    _put(module, edit.constant.rpartition(".")[2], new, undo_log)


def _holder(model: nn.Module, name: str) -> tuple[Tensor, nn.Module]:
    """The parameter or buffer with this name, and the module that holds it."""
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    held = registry_of(module, key).get(key)
    if held is None:
        raise AttributeError(name)
    return held, module


def _put(module: nn.Module, key: str, new: Tensor, undo_log: UndoLog) -> None:
    registry = registry_of(module, key)
    held = registry[key]
    undo_log.set(registry, key, nn.Parameter(new, held.requires_grad) if isinstance(held, nn.Parameter) else new)


def _settings(reader: Reader, edit: Fold) -> dict[str, object]:
    """New settings of a module: its input channels, and for a convolution strides that skip positions."""
    module = reader.module
    found: dict[str, object] = {name: edit.num_in for name in _WIDTHS if type(vars(module).get(name)) is int}
    if not reader.called or not isinstance(module, Conv):
        if edit.strides and max(edit.strides) > 1:
            raise SurgeryError(f"cannot {edit}: its stride is not the module's to change")
        return found
    if len(edit.strides) != len(module.kernel_size):
        raise SurgeryError(f"cannot {edit}: it has {len(module.kernel_size)} axes, not {len(edit.strides)}")
    found["groups"] = 1
    if max(edit.strides) > 1:

        def times(sizes: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(size * stride for size, stride in zip(sizes, edit.strides, strict=True))

        found |= {"stride": times(module.stride), "dilation": times(module.dilation)}
        if isinstance(module.padding, tuple):
            padding = times(module.padding)
            found["padding"] = padding
            found[PADDING_FOR_PAD] = [size for size in reversed(padding) for _ in range(2)]
    return found
