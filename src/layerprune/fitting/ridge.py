"""Ridge regression from a stream of rows; only the Gram matrix is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Candidates, strongest first, in units of the mean variance of the inputs.
STRENGTHS = (100.0, 20.0, 5.0, 1.0, 0.2, 0.05, 0.01, 1e-3, 1e-4)

_ROWS_AT_ONCE = 4096

_VARIES = 1e-9  # variance below this share of the inputs' mean square is rounding


class Gram:
    """Gram matrix of inputs with a constant 1 appended, in float64.

    Args:
        groups: blocks of the matrix, each with its own inputs.
        num_in: inputs of a block.
        device: device of the rows.
    """

    def __init__(self, groups: int, num_in: int, *, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.matrix = torch.zeros(groups, num_in + 1, num_in + 1, dtype=dtype, device=device)
        self.num_rows = 0

    def add(self, read: Tensor) -> None:
        """Add rows ``(group, row, input)``; the last input is 1."""
        add_product(self.matrix, read, read)
        self.num_rows += read.shape[1]


def add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add ``oneᵀ other`` to a total in float64.

    Rows of single precision are multiplied in float32, a few thousand at a time. The error is about 1e-6 of the largest
    possible entry, far below the ridge. The time is half of that in float64, and 1/64 on some GPUs.
    """
    if total.dtype in (one.dtype, other.dtype) or (one.is_cuda and torch.backends.cuda.matmul.allow_tf32):
        total.baddbmm_(one.mT.to(total.dtype), other.to(total.dtype))
        return
    for start in range(0, one.shape[1], _ROWS_AT_ONCE):
        end = start + _ROWS_AT_ONCE
        total += one[:, start:end].mT @ other[:, start:end]


class Sums:
    """Sums over the rows of a least-squares fit, in float64.

    Args:
        gram: Gram matrix of the inputs; several fits on the same rows may share it.
        num_out: outputs of a block.
        bias: whether to fit a constant, too.
    """

    def __init__(self, gram: Gram, num_out: int, *, bias: bool) -> None:
        groups, width, _ = gram.matrix.shape
        self.bias = bias
        self.gram_of = gram
        self.cross_of = gram.matrix.new_zeros(groups, width, num_out)
        self.square = 0.0

    @property
    def num_rows(self) -> int:
        return self.gram_of.num_rows

    @property
    def gram(self) -> Tensor:
        """``(group, input, input)``, with the constant if one is fitted."""
        return self.gram_of.matrix if self.bias else self.gram_of.matrix[:, :-1, :-1]

    @property
    def cross(self) -> Tensor:
        """``(group, input, output)``."""
        return self.cross_of if self.bias else self.cross_of[:, :-1]

    def add(self, read: Tensor, wanted: Tensor) -> None:
        """Add rows ``(group, row, input)``, whose last input is 1, and ``(group, row, output)``.

        The Gram matrix is not changed, because another fit may have added these rows to it.
        """
        add_product(self.cross_of, read, wanted)
        self.square += float(torch.linalg.vector_norm(wanted, dtype=self.cross_of.dtype)) ** 2

    def subtract(self, matrix: Tensor) -> None:
        """Subtract a matrix's outputs from the wanted outputs: ``(group, input, output)``, last input the constant.

        The error is the rounding of the sums: about 1e-6 of the wanted outputs.
        """
        made = self.gram_of.matrix @ matrix
        self.square += float((matrix * made).sum()) - 2 * float((matrix * self.cross_of).sum())
        if math.isfinite(self.square):
            self.square = max(self.square, 0.0)
        self.cross_of = self.cross_of - made

    def plus(self, other: Sums) -> Sums:
        gram = Gram.__new__(Gram)
        gram.matrix = self.gram_of.matrix + other.gram_of.matrix
        gram.num_rows = self.num_rows + other.num_rows
        both = Sums.__new__(Sums)
        both.bias, both.gram_of = self.bias, gram
        both.cross_of, both.square = self.cross_of + other.cross_of, self.square + other.square
        return both

    def solve(self, strength: float) -> Tensor:
        """Solve for the matrix with the least squared error plus penalty.

        Args:
            strength: weight of the squared norm, in units of the inputs' mean variance; a constant has no penalty.

        Returns:
            ``(group, input, output)``; the last input is the constant, if there is one.
        """
        gram = self.gram
        diagonal = gram.diagonal(dim1=1, dim2=2)
        offset = gram[:, :-1, -1].square() / max(self.num_rows, 1) if self.bias else None
        own = diagonal if offset is None else diagonal[:, :-1] - offset
        # The variance of constant inputs is rounding; a penalty relative to it would be far too small.
        size = torch.maximum(own.clamp(min=0).mean(1, keepdim=True), _VARIES * diagonal.mean(1, keepdim=True))
        size = torch.where(size > 0, size, torch.ones_like(size))  # all inputs are 0
        penalty = (strength * size).expand(-1, diagonal.shape[1]).clone()
        if self.bias:
            penalty[:, -1] = 0
        penalised = gram + torch.diag_embed(penalty)
        factor, failed = torch.linalg.cholesky_ex(penalised)
        if bool(failed.any()):  # indefinite because of rounding
            return torch.linalg.solve(penalised, self.cross)
        return torch.cholesky_solve(self.cross, factor)

    def error(self, matrix: Tensor) -> float:
        gain = 2 * (matrix * self.cross).sum() - (matrix * (self.gram @ matrix)).sum()
        return self.square - float(gain)


@dataclass(frozen=True)
class Fit:
    """Fitted change of a matrix, and its error on held-out rows.

    Attributes:
        matrix: ``(group, input, output)``, fitted on all rows.
        tried: the same, fitted without the held-out rows.
        strength: strength of the ridge.
        left: squared error of ``tried`` on the held-out rows, relative to that without a change.
    """

    matrix: Tensor
    tried: Tensor
    strength: float
    left: float


def fit(seen: Sums, held_out: Sums, *, start: float = STRENGTHS[0]) -> Fit | None:
    """Fit with a strength chosen on held-out rows, then refit on all; None if no strength reduces the held-out error.

    Args:
        seen: sums of the rows to fit on.
        held_out: sums of the held-out rows.
        start: first strength, one of :data:`STRENGTHS`. The search goes to weaker strengths while the held-out error
            falls, or to stronger ones if the first step does not reduce it.
    """
    if seen.num_rows == 0 or held_out.square == 0:
        return None

    def tried(place: int) -> tuple[float, int, Tensor]:
        matrix = seen.solve(STRENGTHS[place])
        return held_out.error(matrix), place, matrix

    first = best = tried(STRENGTHS.index(start))
    for step in (1, -1):
        while best[1] + step in range(len(STRENGTHS)) and not (another := tried(best[1] + step))[0] > best[0]:
            best = another
        if best is not first:
            break
    error, place, matrix = best
    if not error < held_out.square * (1 - 1e-4):
        return None
    return Fit(seen.plus(held_out).solve(STRENGTHS[place]), matrix, STRENGTHS[place], max(error, 0.0) / held_out.square)
