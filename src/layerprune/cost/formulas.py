"""MACs of operations that torch's FLOP counter counts as zero.

As in torch, formulas return FLOPs, two per multiply-accumulate, and receive shapes in place of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, cast

import torch

from layerprune.errors import CostError, ended_by
from layerprune.tensors import registered_ops

_Shape = Sequence[int]


def formulas() -> Mapping[Any, Callable[..., int]]:
    """Return the formulas by operation, for the operations that torch and loaded libraries have."""
    found: dict[Any, Callable[..., int]] = {}
    for formula, names in _FORMULAS:
        for name in names.split():
            space, _, short = name.rpartition(".")
            operations = getattr(torch.ops, space or "aten")
            if hasattr(operations, short):
                found[getattr(operations, short)] = formula
    for name, traits in registered_ops().items():
        if traits.macs is not None:
            library, _, short = name.partition("::")
            found[getattr(getattr(torch.ops, library), short)] = _registered(name, traits.macs)
    return found


def _registered(name: str, macs: Callable[..., int]) -> Callable[..., int]:

    def formula(*args: Any, out_shape: Any = (), **kwargs: Any) -> int:
        try:
            found = macs(*args, out_shape=out_shape, **kwargs)
        except Exception as error:  # the user's own
            raise CostError(ended_by(f"macs= of '{name}' raised", error)) from error
        if type(found) is not int or found < 0:
            raise CostError(f"macs= of '{name}' returned {found!r:.40}: return a number, an int of 0 or more")
        return 2 * found

    return formula


def _attention(query: _Shape, key: _Shape, value: _Shape, *_: Any, **__: Any) -> int:
    """Scores and weighted sum; with grouped queries, key heads count once per query head."""
    *samples, tokens, width = query
    return 2 * prod(samples) * tokens * key[-2] * (width + value[-1])


def _times_matrix(left: _Shape, right: _Shape, *_: Any, out_shape: _Shape = (), **__: Any) -> int:
    """Rows of ``left`` times a matrix in any layout or packing."""
    return 2 * prod(left) * out_shape[-1]


def _grouped(left: _Shape, right: _Shape, *_: Any, **__: Any) -> int:
    """Each row or column meets one of several matrices; two stacks are a batch."""
    one = left[1:] if len(left) > len(right) else left
    return 2 * prod(one) * right[-1]


def _times_vector(left: _Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(left)


def _plus_times_vector(_: _Shape, left: _Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(left)


def _plus_times_matrix(_: _Shape, left: _Shape, right: _Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(left) * right[-1]


def _distances(left: _Shape, right: _Shape, *_: Any, out_shape: _Shape = (), **__: Any) -> int:
    return 2 * prod(out_shape) * left[-1]


def _bilinear(
    left: _Shape, weight: _Shape, right: _Shape, expand1: Any, expand2: Any, expand3: Any, *_: Any, **__: Any
) -> int:
    """One product per element of the three operands after broadcasting."""
    shapes = zip((left, weight, right), (expand1, expand2, expand3), strict=True)
    sizes = [_unsqueezed(shape, places) for shape, places in shapes]
    return 2 * prod(max(each) for each in zip(*sizes, strict=True))


def _unsqueezed(shape: _Shape, places: Sequence[int]) -> list[int]:
    found = list(shape)
    for place in sorted(places):
        found.insert(place, 1)
    return found


def _convolution_over_time(_: _Shape, weight: _Shape, *__: Any, out_shape: _Shape = (), **___: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[:-1])


def _deformed(_: _Shape, weight: _Shape, *__: Any, out_shape: _Shape = (), **___: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


def _one_recurrence(rows: _Shape, of_input: _Shape, of_state: _Shape, *_: Any, **__: Any) -> int:
    """One layer in one direction: each step multiplies input and state by a matrix."""
    return 2 * prod(rows[:-1]) * (prod(of_input) + prod(of_state))


def _whole_recurrence(rows: _Shape, weights: Any, *_: Any, **__: Any) -> int:
    """All layers and directions: each weight counts once per step, without biases."""
    shapes = cast("Sequence[_Shape]", weights)
    return 2 * prod(rows[:-1]) * sum(prod(shape) for shape in shapes if len(shape) == 2)


_FORMULAS: tuple[tuple[Callable[..., int], str], ...] = (
    (
        _attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable "
        "_scaled_dot_product_attention_math_for_mps",
    ),
    (_times_matrix, "_int_mm _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu _scaled_mm_v2"),
    (_grouped, "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2"),
    (_times_vector, "mv dot vdot"),
    (_plus_times_vector, "addmv"),
    (_plus_times_matrix, "addbmm _addmm_activation"),
    (_distances, "_euclidean_dist"),
    (_bilinear, "_trilinear"),
    (_convolution_over_time, "conv_tbc"),
    (_deformed, "torchvision.deform_conv2d"),
    (_one_recurrence, "mkldnn_rnn_layer"),
    (_whole_recurrence, "_cudnn_rnn miopen_rnn"),
)
