"""Cuts batches into parts, where a part tells what the whole batch does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from layerprune.capture import Batch

#: Into how many parts a batch is cut.
PARTS = 4

#: A part in which fewer things are predicted, such as tokens, or that has fewer samples, is none to judge by.
FEWEST_PREDICTIONS = 8
FEWEST_SAMPLES = 2

_CLOSE = 1e-3  # of the largest number: kernels for other batch sizes round otherwise
_ROUNDINGS = 8  # of what has few bits


@dataclass(frozen=True, eq=False)
class SubBatch:
    """What is looked at at a time.

    Attributes:
        row: the number of the batch.
        batch: the batch, or a part of it.
        share: how much of it that is.
    """

    row: int
    batch: Batch
    share: float = 1.0


def whole(batches: Sequence[Batch], seed: int) -> list[SubBatch]:
    """One round for each batch, in an order drawn from a seed, as data may be sorted."""
    return [SubBatch(int(row), batches[row]) for row in np.random.default_rng(seed).permutation(len(batches))]


def fewest_samples(predictions_per_sample: float) -> int:
    """How many samples a part has to have."""
    return max(FEWEST_SAMPLES, math.ceil(FEWEST_PREDICTIONS / max(predictions_per_sample, 1.0)))


def cut(rounds: Sequence[SubBatch], fewest: int) -> list[SubBatch]:
    """The same in parts: first one of each batch, then another of each, so that batch and batch are soon compared.

    Args:
        rounds: whole batches.
        fewest: samples in a part; batches of less than two such parts stay whole.
    """
    parts = [list(_parts(one, fewest)) for one in rounds]
    return [some[number] for number in range(PARTS) for some in parts if number < len(some)]


def ends(part: Sequence[Tensor], whole: Sequence[Tensor]) -> bool:
    """Whether outputs on the last part of a batch are what those on all of it end with, as samples know of no others.

    The first part would not tell: what a recurrent layer makes of the first steps does not hang on the later ones.
    """
    return len(part) == len(whole) > 0 and all(map(_is_end, part, whole))


def adds_up(parts: Sequence[tuple[float, float]], whole: float) -> bool:
    """Whether losses on the parts of a batch, each with its share, have that on all of it for their mean."""
    mean = sum(loss * share for loss, share in parts)
    return abs(mean - whole) <= _CLOSE * max(abs(whole), *(abs(loss) for loss, _ in parts))


def _parts(one: SubBatch, fewest: int) -> Iterator[SubBatch]:
    """A batch in parts; as it is, where it has few samples, or none can be told."""
    size = one.batch.num_samples
    bounds = np.linspace(0, size, max(1, min(PARTS, size // fewest)) + 1).astype(int).tolist()
    for start, stop in pairwise(bounds):
        some = one.batch.samples(start, stop) if stop - start < size else None
        if some is None:
            yield one
            return
        yield SubBatch(one.row, some, (stop - start) / size)


def _is_end(part: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is what another one ends with."""
    if part.dim() == 0 or part.shape[1:] != whole.shape[1:] or not 0 < len(part) < len(whole):
        return False
    end = whole[-len(part) :]
    close = max(_CLOSE, _ROUNDINGS * torch.finfo(end.dtype).eps) if end.is_floating_point() else 0.0
    return bool(((part - end).abs() <= close * end.abs().max()).all())
