"""Linear layers and convolutions as matrices: input rows, outputs and weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerprune.modules import is_transposed, storage_key
from layerprune.tensors import is_wrapped
from layerprune.torch_internals import PADDING_FOR_PAD, Conv, has_hooks, parameters_of, with_parameters

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_ROW_BYTES = 64 * 2**20  # per piece of rows in float32: im2col multiplies memory by the size of the kernel


def why_not_solvable(module: nn.Module) -> str:
    """Why the weight of a transform cannot be solved again; empty if it can."""
    known = _base(module)
    if known is None:
        return f"a {type(module).__name__} is not solved again"
    if "forward" in vars(module) or has_hooks(module):
        return "hooks or a forward of its own may change what it computes"
    weight = parameters_of(module).get("weight")
    if weight is None:
        return "its weight is computed from others (a parametrization)"
    if is_wrapped(weight):
        return f"its weight is a {type(weight.data).__name__}: quantised weights are not solved again"
    if weight.dtype not in _FLOATS:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}: quantised weights are not solved again"
    return ""


def has_free_bias(module: nn.Module) -> bool:
    """Whether a transform whose weight cannot be solved, such as a quantised one, has a bias that can be written."""
    if not isinstance(module, (nn.Linear, *_CONVS)) or "forward" in vars(module):
        return False
    bias = parameters_of(module).get("bias")
    hooked = has_hooks(module)
    return not hooked and "weight" in parameters_of(module) and bias is not None and bias.dtype in _FLOATS


def _base(module: nn.Module) -> type[nn.Module] | None:
    """The known layer type with the same forward as a module."""
    forward = type(module).forward
    return next((known for known in (nn.Linear, *_CONVS) if forward is known.forward), None) or (
        type(module) if is_transposed(module) else None
    )


def num_groups(module: nn.Module) -> int:
    """Number of blocks of the matrix: the groups of a convolution."""
    return module.groups if isinstance(module, Conv) else 1


def matrix_of(module: nn.Module) -> Tensor:
    """The weight as ``(group, output, input)`` in float64; input is channels times kernel."""
    weight = cast(Tensor, module.weight).detach()
    weight = weight.to(exact(weight))
    if is_transposed(module):
        weight = weight.T
    groups = num_groups(module)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def as_weight(module: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix of the form of :func:`matrix_of`, with the shape and dtype of the module's weight."""
    weight = cast(Tensor, module.weight)
    flat = matrix.reshape(-1, matrix.shape[-1])
    return (flat.T if is_transposed(module) else flat).reshape(weight.shape).to(weight.dtype)


def num_rows(module: nn.Module, read: Tensor, found: Tensor, mask: Tensor | None) -> tuple[int, int]:
    """Number of rows in a transform's input, and number of rows for each element of ``some`` in :func:`rows_of`."""
    if isinstance(module, Conv):
        num_samples = read.shape[0] if read.dim() == len(module.kernel_size) + 2 else 1
        places = found.numel() // (num_samples * module.out_channels)
        return num_samples * places, places
    counts = int(mask.sum()) * read.shape[2:-1].numel() if _fits(read, mask) and mask is not None else None
    return read.shape[:-1].numel() if counts is None else counts, 1


def rows_of(
    module: nn.Module, read: Tensor, wanted: Tensor, mask: Tensor | None, some: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Lay out a transform's input, and the change wanted of its output, as rows.

    Args:
        module: the transform.
        read: its input.
        wanted: wanted change of its output; elements in the output's order, any shape.
        mask: ``(sample, token)``, 1 for tokens that count; ignored if ``read`` has no such dimensions.
        some: numbers of the tokens that count, or of a convolution's samples, to use; all if None.

    Yields:
        Pieces of rows: ``(group, row, input)`` and ``(group, row, output)``, in float32, or in float64 if given so.
    """
    if isinstance(module, Conv):
        yield from _rows_of_conv(module, read, wanted, some)
        return
    flat = wanted.reshape(*read.shape[:-1], -1)
    if mask is not None and _fits(read, mask):
        keep = mask.bool()
        read, flat = read[keep], flat[keep]
    read, flat = read.reshape(-1, read.shape[-1]), flat.reshape(-1, flat.shape[-1])
    if some is not None:
        read, flat = read[some.to(read.device)], flat[some.to(flat.device)]
    yield read[None].to(single(read)), flat[None].to(single(flat))


def _fits(read: Tensor, mask: Tensor | None) -> bool:
    return mask is not None and read.dim() > 2 and read.shape[:2] == mask.shape


def _rows_of_conv(module: Conv, read: Tensor, wanted: Tensor, some: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The patches under a kernel as rows (im2col), a few samples at a time."""
    spatial = len(module.kernel_size)
    if read.dim() == spatial + 1:
        read = read[None]
    wanted = wanted.reshape(read.shape[0], module.out_channels, -1)
    if some is not None:
        read, wanted = read[some.to(read.device)], wanted[some.to(wanted.device)]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(read, vars(module)[PADDING_FOR_PAD], mode=mode)
    sizes = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            padded.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True
        )
    ]
    places = torch.Size(sizes).numel()
    width = read.shape[1] * torch.Size(module.kernel_size).numel()
    step = max(1, _ROW_BYTES // (4 * places * width))
    for start in range(0, read.shape[0], step):
        piece = padded[start : start + step].to(single(padded))
        taps = [piece[(..., *_tap(module, offset, sizes))] for offset in product(*map(range, module.kernel_size))]
        patches = torch.stack(taps, 2)  # (sample, channel, tap, place…)
        count = patches.shape[0]
        patches = patches.reshape(count, module.groups, width // module.groups, places)
        change = wanted[start : start + step].to(single(wanted)).reshape(count, module.groups, -1, places)
        yield _by_group(patches), _by_group(change)


def layout(module: nn.Module) -> tuple[object, ...]:
    """Key of the layout of input rows: transforms with equal keys and the same input have the same rows."""
    if not isinstance(module, Conv):
        return ()
    return module.kernel_size, module.stride, module.dilation, module.groups, module.padding, module.padding_mode


def output_of(module: nn.Module, weight: Tensor, bias: Tensor | None, read: Tensor) -> Tensor:
    """Output of a transform with another weight and bias."""
    bias = None if bias is None else nn.Parameter(bias, False)
    other = with_parameters(module, {"weight": nn.Parameter(weight, False), "bias": bias})
    return type(module).forward(other, read)


def add_output(module: nn.Module, weight: Tensor, bias: Tensor | None, read: Tensor, into: Tensor) -> bool:
    """Add a linear layer's output with another weight and bias to a tensor, without a temporary for the output.

    Args:
        module: the transform.
        weight: the other weight, of the module's shape.
        bias: the other bias; None for none.
        read: the transform's input.
        into: receives the sum; elements in the output's order, any shape.

    Returns:
        True if added; False, with nothing written, for convolutions and mixed dtypes.
    """
    if isinstance(module, Conv) or not into.is_contiguous() or not weight.dtype == read.dtype == into.dtype:
        return False
    matrix = weight if is_transposed(module) else weight.T
    rows = read.reshape(-1, matrix.shape[0])
    if len(rows) * matrix.shape[1] != into.numel() or storage_key(rows) == storage_key(into):
        return False
    flat = into.view(-1, matrix.shape[1])
    flat.addmm_(rows, matrix)
    if bias is not None:
        flat.add_(bias)
    return True


def channel_dim(module: nn.Module) -> int:
    """Dimension of the channels in a transform's output, negative."""
    return -1 - len(module.kernel_size) if isinstance(module, Conv) else -1


def _tap(module: Conv, offset: tuple[int, ...], sizes: list[int]) -> tuple[slice, ...]:
    """Slices of the padded input under one element of the kernel."""
    return tuple(
        slice(o * dilation, o * dilation + stride * (size - 1) + 1, stride)
        for o, dilation, stride, size in zip(offset, module.dilation, module.stride, sizes, strict=True)
    )


def _by_group(tensor: Tensor) -> Tensor:
    """(sample, group, column, place) → (group, row, column)."""
    return tensor.permute(1, 0, 3, 2).reshape(tensor.shape[1], -1, tensor.shape[2])


def exact(tensor: Tensor) -> torch.dtype:
    """Dtype of sums: float64, or float32 if the device has no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def single(tensor: Tensor) -> torch.dtype:
    """Dtype of products of rows: float32, or the tensor's own if wider."""
    return torch.promote_types(tensor.dtype, torch.float32)
