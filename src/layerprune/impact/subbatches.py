"""Cuts batches into parts, if the model's output on a part is the same as in the whole batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from layerprune.capture import Batch

#: Parts of one batch.
PARTS = 4

#: Fewest predictions (tokens, say) and fewest samples in a part.
FEWEST_PREDICTIONS = 8
FEWEST_SAMPLES = 2

_CLOSE = 1e-3  # of the largest number: kernels for other batch sizes round differently
_ROUNDINGS = 8  # tolerance in roundings, for types of few bits


@dataclass(frozen=True, eq=False)
class SubBatch:
    """A batch or a part of it, measured in one run.

    Attributes:
        row: the number of the batch.
        batch: the batch, or a part of it.
        share: share of the samples of the batch.
    """

    row: int
    batch: Batch
    share: float = 1.0


def whole(batches: Sequence[Batch], seed: int) -> list[SubBatch]:
    """Whole batches in an order drawn from a seed, because data may be sorted."""
    return [SubBatch(int(row), batches[row]) for row in np.random.default_rng(seed).permutation(len(batches))]


def fewest_samples(predictions_per_sample: float) -> int:
    """Fewest samples in a part."""
    return max(FEWEST_SAMPLES, math.ceil(FEWEST_PREDICTIONS / max(predictions_per_sample, 1.0)))


def cut(rounds: Sequence[SubBatch], fewest: int) -> list[SubBatch]:
    """Cut batches into parts: first one part of each batch, then a second of each, so that batches soon compare.

    Args:
        rounds: whole batches.
        fewest: samples in a part; a batch with less than twice as many stays whole.
    """
    parts = [list(_parts(one, fewest)) for one in rounds]
    return [some[number] for number in range(PARTS) for some in parts if number < len(some)]


def ends(part: Sequence[Tensor], whole: Sequence[Tensor]) -> bool:
    """Whether outputs on the last part of a batch equal the end of the outputs on the whole: samples are independent.

    The first part is no evidence: a recurrent layer's first outputs do not depend on later steps.
    """
    return len(part) == len(whole) > 0 and all(map(_is_end, part, whole))


def adds_up(parts: Sequence[tuple[float, float]], whole: float) -> bool:
    """Whether the loss on a batch is the mean of the losses on its parts, each given with its share."""
    mean = sum(loss * share for loss, share in parts)
    return abs(mean - whole) <= _CLOSE * max(abs(whole), *(abs(loss) for loss, _ in parts))


def _parts(one: SubBatch, fewest: int) -> Iterator[SubBatch]:
    """A batch in parts; whole, if it has few samples or its samples cannot be separated."""
    size = one.batch.num_samples
    bounds = np.linspace(0, size, max(1, min(PARTS, size // fewest)) + 1).astype(int).tolist()
    for start, stop in pairwise(bounds):
        some = one.batch.samples(start, stop) if stop - start < size else None
        if some is None:
            yield one
            return
        yield SubBatch(one.row, some, (stop - start) / size)


def _is_end(part: Tensor, whole: Tensor) -> bool:
    if part.dim() == 0 or part.shape[1:] != whole.shape[1:] or not 0 < len(part) < len(whole):
        return False
    end = whole[-len(part) :]
    close = max(_CLOSE, _ROUNDINGS * torch.finfo(end.dtype).eps) if end.is_floating_point() else 0.0
    return bool(((part - end).abs() <= close * end.abs().max()).all())
