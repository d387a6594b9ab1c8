"""The form of a forward's output, to compare a pruned model's with the original's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from layerprune.graph import Refusal, RefusalCode
from layerprune.stand_ins import DroppedTensor


def signature(out: Any, depth: int = 0) -> Any:
    """Describe an output: types, keys, and each tensor's shape and dtype. Refuses a dropped tensor."""
    if isinstance(out, DroppedTensor):
        raise Refusal(RefusalCode.DROPPED_IN_OUTPUT)
    if isinstance(out, Tensor):
        return f"{'×'.join(map(str, out.shape))} {str(out.dtype).removeprefix('torch.')}"
    if isinstance(out, Mapping):
        return {str(key): signature(value, depth + 1) for key, value in out.items()}
    if isinstance(out, (list, tuple)):
        return [type(out).__name__, *(signature(value, depth + 1) for value in out)]
    if depth < 4 and hasattr(out, "__dict__") and not isinstance(out, (type, nn.Module)):
        return {key: signature(value, depth + 1) for key, value in vars(out).items()}
    return type(out).__name__
