"""The elements that each tensor of a layer loses when the layer loses channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerprune.edits import Ranges, Slice, kept_ranges
from layerprune.errors import SurgeryError
from layerprune.torch_internals import BatchOrInstanceNorm, Conv, FakeTensor, parameters_of


@dataclass(frozen=True)
class TensorSlice:
    """The elements that a tensor loses.

    Attributes:
        dim: the dimension that they lie along.
        dropped: half-open ranges along it, counted over all groups.
        groups: number of groups along dimension 0 that each keep other elements; of a grouped convolution.
    """

    dim: int
    dropped: Ranges
    groups: int = 1

    def cut(self, tensor: Tensor, edit: Slice) -> Tensor:
        """Return the tensor without the elements.

        Raises:
            SurgeryError: they do not lie within the tensor, none would stay, or the groups would become uneven.
        """
        size = tensor.shape[self.dim] * self.groups
        kept = kept_ranges(self.dropped, size)
        if not kept or max(last for _, last in self.dropped) > size:
            raise SurgeryError(f"cannot {edit}: channels {list(self.dropped)} do not lie within the {size} there are")
        with torch.no_grad():
            old = tensor.detach()
            if self.groups == 1 and isinstance(tensor, FakeTensor):  # the shape is enough, and proofs slice often
                shape = list(old.shape)
                shape[self.dim] = sum(b - a for a, b in kept)
                return old.new_empty(shape)
            if self.groups == 1:
                return torch.cat([old.narrow(self.dim, a, b - a) for a, b in kept], self.dim).contiguous()
            return self.cut_groups(old, [i for a, b in kept for i in range(a, b)], edit)

    def cut_groups(self, tensor: Tensor, kept: Sequence[int], edit: Slice) -> Tensor:
        each = tensor.shape[self.dim]
        by_group = [[i % each for i in kept if i // each == group] for group in range(self.groups)]
        if len({len(some) for some in by_group}) > 1 or not by_group[0]:
            raise SurgeryError(f"cannot {edit}: its {self.groups} groups would become uneven")
        pieces = tensor.chunk(self.groups, 0)
        index = [torch.tensor(some, device=tensor.device) for some in by_group]
        return torch.cat([p.index_select(self.dim, i) for p, i in zip(pieces, index, strict=True)], 0).contiguous()


@dataclass(frozen=True)
class ChannelLoss:
    """The elements that a layer loses.

    Attributes:
        pieces: parameter or buffer → its slice.
        counts: attribute → by how much it shrinks.
    """

    pieces: Mapping[str, TensorSlice]
    counts: Mapping[str, int]


def channel_loss_of(module: nn.Module, edit: Slice) -> ChannelLoss:
    """Tell which tensors and counts of a layer shrink; raises :class:`SurgeryError` where its channels cannot go."""
    gone = sum(last - first for first, last in edit.dropped)
    if isinstance(module, nn.Linear) and edit.side == "in":
        return ChannelLoss({"weight": TensorSlice(1, edit.dropped)}, {"in_features": gone})
    if isinstance(module, Conv):
        return _conv_loss(module, edit, gone)
    if isinstance(module, BatchOrInstanceNorm):
        names = ("weight", "bias", "running_mean", "running_var")
        return ChannelLoss({name: TensorSlice(0, edit.dropped) for name in names}, {"num_features": gone})
    if isinstance(module, nn.GroupNorm):
        whole = _whole_groups(edit, module.num_channels // module.num_groups, module.num_groups)
        counts = {"num_channels": gone, "num_groups": sum(b - a for a, b in whole)}
        return ChannelLoss({name: TensorSlice(0, edit.dropped) for name in ("weight", "bias")}, counts)
    if isinstance(module, nn.PReLU):
        return ChannelLoss({"weight": TensorSlice(0, edit.dropped)}, {"num_parameters": gone})
    raise SurgeryError(f"cannot {edit}: nothing is known of the channels of a {type(module).__name__}")


def _conv_loss(module: Conv, edit: Slice, gone: int) -> ChannelLoss:
    if edit.side == "in":
        if module.transposed and module.groups > 1:
            raise SurgeryError(f"cannot {edit}: its groups would become uneven")
        return ChannelLoss(
            {"weight": TensorSlice(0 if module.transposed else 1, edit.dropped, module.groups)}, {"in_channels": gone}
        )
    each, makes = module.in_channels // module.groups, module.out_channels // module.groups
    groups = _whole_groups(edit, each, module.groups)
    made: Ranges = tuple((a * makes, b * makes) for a, b in groups)
    lost = sum(b - a for a, b in groups)
    weight = edit.dropped if module.transposed else made
    counts = {"in_channels": gone, "out_channels": lost * makes, "groups": lost}
    return ChannelLoss({"weight": TensorSlice(0, weight), "bias": TensorSlice(0, made)}, counts)


def _whole_groups(edit: Slice, each: int, num_groups: int) -> Ranges:
    if any(a % each or b % each or b > each * num_groups for a, b in edit.dropped):
        raise SurgeryError(f"cannot {edit}: it cuts through groups of {each} channels, of which there are {num_groups}")
    return tuple((a // each, b // each) for a, b in edit.dropped)


def price_of(module: nn.Module, edit: Slice) -> dict[str, tuple[int, Ranges]]:
    """Price a slice: parameter → (elements per unit, half-open ranges of units); the units fit all slices."""
    found: dict[str, tuple[int, Ranges]] = {}
    for name, piece in channel_loss_of(module, edit).pieces.items():
        parameter = parameters_of(module).get(name)
        if parameter is None:
            continue
        if isinstance(module, Conv) and name == "weight":
            found[name] = parameter.numel() // module.in_channels, edit.dropped
        else:
            found[name] = parameter.numel() // parameter.shape[piece.dim], piece.dropped
    return found
