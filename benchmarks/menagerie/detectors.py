"""torchvision's detectors: what they return depends on values, so they are planned on real tensors, on small images.

Where torchvision's own binary does not load, the two operators that they call are written here in Python.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_SIZE = 96
_PROPOSALS = 5  # instead of thousands; and as many detections
_kernels: list[torch.library.Library] = []  # a Library takes its kernels with it when it is collected


def build(builder: Callable[..., nn.Module]) -> nn.Module:
    """Build a detector on the CPU, untrained, for images of ``_SIZE`` pixels where it does not fix their size."""
    _supply_kernels()
    sizes = {} if builder.__name__.startswith("ssd") else {"min_size": _SIZE, "max_size": _SIZE}
    if "rcnn" in builder.__name__:
        sizes |= {f"rpn_{when}_nms_top_n_{mode}": _PROPOSALS for when in ("pre", "post") for mode in ("train", "test")}
        sizes["box_detections_per_img"] = _PROPOSALS
    return builder(weights=None, weights_backbone=None, **sizes).eval()


def _supply_kernels() -> None:
    """Implement ``nms`` and ``roi_align`` on the CPU, unless torchvision does."""
    from torchvision import extension
    from torchvision.ops.roi_align import _roi_align

    if _kernels or extension._has_ops():
        return
    library = torch.library.Library("torchvision", "IMPL")
    library.impl("nms", _nms, "CPU")
    library.impl("roi_align", _roi_align.__wrapped__, "CPU")  # uncompiled: to compile it takes a minute
    _kernels.append(library)
    extension._has_ops = lambda: True


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Keep a box unless a better one overlaps it: best first, greedily."""
    from torchvision.ops import box_iou

    overlaps = box_iou(boxes, boxes) > threshold
    dropped = torch.zeros(len(boxes), dtype=torch.bool)
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if not dropped[index]:
            kept.append(index)
            dropped |= overlaps[index]
    return torch.tensor(kept, dtype=torch.int64)
