"""Runs functions that only move elements on numbered elements, to find the new places of channels."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.edits import ranges
from layerprune.graph import Layer, Refusal, RefusalCode
from layerprune.tensors import is_custom
from layerprune.torch_internals import no_modes


@dataclass(frozen=True)
class ChannelGap:
    """Channels missing from a value.

    Attributes:
        dim: the dimension they are missing from.
        missing: boolean, one per channel of the unpruned value.
    """

    dim: int
    missing: np.ndarray

    @property
    def indices(self) -> tuple[tuple[int, int], ...]:
        """The missing channels as half-open ranges."""
        return ranges(int(i) for i in np.flatnonzero(self.missing))

    def without(self, tensor: Tensor) -> Tensor:
        """Remove the missing channels from a tensor of the unpruned value's shape."""
        return tensor.index_select(self.dim, torch.from_numpy(np.flatnonzero(~self.missing)))


@dataclass(frozen=True)
class Moved:
    """A rearrangement of a value that lost channels, for a proof to repeat.

    A forward may take sizes from shapes, which shrink, or from constants, which do not: only a run shows whether the
    remaining channels end up in their places.

    Attributes:
        layer: the layer.
        shape: the unpruned value's shape.
        before: the gap of the operand.
        after: the expected gap of each result; None where it is whole.
    """

    layer: Layer
    shape: tuple[int, ...]
    before: ChannelGap
    after: tuple[ChannelGap | None, ...]

    def fault(self, run: Callable[[Tensor], Any]) -> Refusal | None:
        """Return the fault of the edited run's own call of the layer on remaining channels; None if there is none."""
        with no_modes():
            whole = _numbered(self.shape)
            found = _results(run(self.before.without(whole)))
            wanted = _results(run(whole) if self.layer.is_module else recorded_call(self.layer)(whole))
            if len(found) != len(wanted):
                code = RefusalCode.MAKES_OTHER_NUMBER
                return Refusal(code, self.layer.name, num=len(found), wanted=len(wanted))
            for one, other, gap in zip(found, wanted, self.after, strict=True):
                kept = other if gap is None else gap.without(other)
                if one.shape != kept.shape or not torch.equal(one, kept):
                    return Refusal(RefusalCode.MOVES_CHANNELS, self.layer.name)
        return None


def follow(
    layer: Layer, run: Callable[[Tensor], Any], gap: ChannelGap, shape: tuple[int, ...]
) -> tuple[ChannelGap | None, ...]:
    """Follow missing channels through a rearrangement of an operand whose unpruned ``shape`` is given.

    ``run`` is the layer's function, with its recorded literals.

    Returns:
        The gap of each result; None where it is whole.

    Raises:
        Refusal: the missing elements are no longer whole channels, or a result is missing whole.
    """
    with no_modes():
        marks = torch.from_numpy(gap.missing).view([-1 if d == gap.dim else 1 for d in range(len(shape))])
        marks = marks.expand(shape).contiguous()
        try:
            results = _results(run(marks))
        except Exception as error:  # a recorded argument that cannot be repeated: nothing is known then
            raise _not_followed(layer) from error
        return tuple(_gap_of(layer, marked) for marked in results)


def recorded_call(layer: Layer) -> Callable[[Tensor], Any]:
    """Return the function that a layer was recorded as; refuses unknown functions, and those that take more tensors."""
    args, kwargs = layer.literals
    functions = _functions(layer.function or "")
    if not functions or len(layer.operands) != 1 or not args or args[0] is not None:
        raise _not_followed(layer)

    def call(tensor: Tensor) -> Any:
        for function in functions[:-1]:
            try:
                return function(tensor, *args[1:], **kwargs)
            except TypeError:  # same name, other arguments: ``torch.max_pool2d`` has no ``return_indices``
                continue
        return functions[-1](tensor, *args[1:], **kwargs)

    return call


def _not_followed(layer: Layer) -> Refusal:
    return Refusal(RefusalCode.CHANNELS_NOT_FOLLOWED, layer.name, channels="channels", type=layer.type_name)


def _functions(name: str) -> list[Callable[..., Any]]:
    """The functions of a name, in torch and in the methods of tensors, or the op of a library."""
    if is_custom(name):
        library, _, op = name.partition("::")
        return [getattr(getattr(torch.ops, library), op)]
    if name == "getitem":
        return [operator.getitem]
    found = (getattr(owner, name, None) for owner in (torch.Tensor, torch, nn.functional))
    return [function for function in found if callable(function)]


def _results(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, (list, tuple)) and all(isinstance(item, Tensor) for item in out):
        return list(out)
    raise Refusal(RefusalCode.RETURNS_NO_TENSORS)


def _numbered(shape: Sequence[int]) -> Tensor:
    count = int(np.prod(shape, dtype=np.int64))
    return torch.arange(count, dtype=torch.int32 if count < 2**31 else torch.int64).reshape(tuple(shape))


def _gap_of(layer: Layer, marks: Tensor) -> ChannelGap | None:
    """The one dimension along which the mask differs; None where no element is missing."""
    if not bool(marks.any()):
        return None
    if bool(marks.all()):
        raise Refusal(RefusalCode.NO_CHANNELS_LEFT, layer.name, type=layer.type_name)
    for dim in range(marks.dim()):
        others = [d for d in range(marks.dim()) if d != dim]
        line = marks.amax(others) if others else marks
        if torch.equal(line.view([-1 if d == dim else 1 for d in range(marks.dim())]).expand_as(marks), marks):
            return ChannelGap(dim, line.numpy().astype(bool))
    raise Refusal(RefusalCode.MIXES_CHANNELS, layer.name, type=layer.type_name)
