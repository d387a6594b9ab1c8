"""Restores the mean of a tensor by the bias of the layer before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from layerprune.fitting import exact
from layerprune.repair.report import Refitted
from layerprune.repair.sites.sites import Site
from layerprune.repair.stream.site_batch import SiteBatch
from layerprune.torch_internals import BatchNorm, Conv, buffers_of, parameters_of

#: (batch number, number of its rows) → how many of these rows are fitted on.
Split = Callable[[int, int], int]


def fold_mean(
    site: Site, model: nn.Module, views: Sequence[SiteBatch], split: Split, *, new_biases: bool = False
) -> tuple[Refitted, dict[str, Tensor], Tensor | None]:
    """Find the constant per channel that brings the tensor which a site feeds nearest to the original's.

    Least squares over all rows. The rows of a convolution are all places of its output, so the constant is a compromise
    at borders, where padding lets less of the difference in. The constant goes into the bias; without a bias into the
    running mean of the batch norm behind the transform, or with ``new_biases`` into a new bias. ``split`` tells how
    many rows are fitted on; the others tell whether the constant helps.

    Returns:
        The result, the new values by name, and the change of the tensor, ``(channel,)``. No values, and None, where the
        constant does not help or no tensor can take it.
    """
    module = model.get_submodule(site.name)
    changes = [_by_channel(site, module, view) for view in views]
    splits = [split(view.number, len(rows)) for view, rows in zip(views, changes, strict=True)]
    seen = _mean([rows[:num] for rows, num in zip(changes, splits, strict=True)])
    others = [rows[num:] for rows, num in zip(changes, splits, strict=True)]
    before = sum(float(rows.square().sum()) for rows in others)
    after = sum(float((rows - seen).square().sum()) for rows in others)
    num_rows = sum(splits)
    shift = _mean(changes)
    values = _values(site, module, model, shift, new_biases=new_biases)
    helps = num_rows > 0 and after < before * (1 - 1e-4) and bool(values)
    told = Refitted(
        name=site.name,
        left=after / before if helps else 1.0,
        kept=helps,
        strength=None,
        num_rows=num_rows,
        num_inputs=1,
    )
    return (told, values, shift) if helps else (told, {}, None)


def spread(module: nn.Module, view: SiteBatch, shift: Tensor) -> Tensor:
    """Expand a constant per channel to a transform's output, its elements in order, in any shape."""
    shift = shift.to(view.there.dtype)
    if not isinstance(module, Conv):
        return shift.expand(*view.read.shape[:-1], -1)
    num_samples = view.read.shape[0] if view.read.dim() == len(module.kernel_size) + 2 else 1
    places = view.there.numel() // (num_samples * len(shift))
    return shift[None, :, None].expand(num_samples, -1, places)


def _by_channel(site: Site, module: nn.Module, view: SiteBatch) -> Tensor:
    """The wanted change of a transform's output, ``(row, channel)``."""
    dtype = exact(view.there)
    change = view.wanted.to(view.there.device, dtype) - view.there.to(dtype)
    if site.moves is not None:
        change = site.moves.back(change)
    if isinstance(module, Conv):
        num_samples = view.read.shape[0] if view.read.dim() == len(module.kernel_size) + 2 else 1
        return change.reshape(num_samples, module.out_channels, -1).transpose(1, 2).flatten(0, 1)
    change = change.reshape(*view.read.shape[:-1], -1)
    if view.mask is not None and change.dim() > 2 and change.shape[:2] == view.mask.shape:
        change = change[view.mask.bool()]
    return change.flatten(0, -2)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.sum(0) for part in parts]).sum(0) / max(sum(len(part) for part in parts), 1)


def _values(site: Site, module: nn.Module, model: nn.Module, shift: Tensor, *, new_biases: bool) -> dict[str, Tensor]:
    """New values of the bias or running mean that takes a shift, by name; empty where none can."""
    bias = parameters_of(module).get("bias")
    norms = [place for place, name in enumerate(site.scales) if _is_norm(model, name)]
    if bias is None and norms:
        # z − μ moves by d where μ moves by −d; the scales from the batch norm on multiply d.
        rest = Site(name=site.name, source=0, reached=0, target=0, scales=site.scales[norms[0] :]).scale(model)
        held = buffers_of(model.get_submodule(site.scales[norms[0]]))["running_mean"]
        assert held is not None
        return {f"{site.scales[norms[0]]}.running_mean": (held - _divided(shift, rest)).to(held.dtype)}
    constant = _divided(shift, site.scale(model))
    if bias is not None:
        return {f"{site.name}.bias": (bias.detach() + constant).to(bias.dtype)}
    weight = parameters_of(module).get("weight")
    return {f"{site.name}.bias": constant.to(weight.dtype)} if new_biases and weight is not None else {}


def _is_norm(model: nn.Module, name: str) -> bool:
    owner, _, key = name.rpartition(".")
    held = parameters_of(model.get_submodule(owner)).get(key)
    return held is None and isinstance(model.get_submodule(name), BatchNorm)


def _divided(shift: Tensor, scale: Tensor | None) -> Tensor:
    """The shift in front of a scale of the channels; 0 where the scale is almost 0."""
    if scale is None:
        return shift
    return torch.where(scale.abs() > 1e-6, shift / scale, torch.zeros_like(shift))
