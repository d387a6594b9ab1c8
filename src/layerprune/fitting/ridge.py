"""Ridge regression from streamed rows, of which only the Gram matrix is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Strengths that are tried, strongest first, in units of the mean variance of the inputs.
STRENGTHS = (100.0, 20.0, 5.0, 1.0, 0.2, 0.05, 0.01, 1e-3, 1e-4)

_ROWS_AT_ONCE = 4096

_VARIES = 1e-9  # share of the inputs' mean square below which their variance counts as rounding


class Gram:
    """Sums of the products of inputs, and of a constant 1 behind them, in float64.

    Args:
        groups: blocks of the matrix, each with inputs of its own.
        num_in: inputs of a block.
        device: where the rows come from.
    """

    def __init__(self, groups: int, num_in: int, *, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.matrix = torch.zeros(groups, num_in + 1, num_in + 1, dtype=dtype, device=device)
        self.num_rows = 0

    def add(self, read: Tensor) -> None:
        """Take rows in: ``(group, row, input)``, the last input being 1."""
        add_product(self.matrix, read, read)
        self.num_rows += read.shape[1]


def add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add ``oneᵀ other`` to a total in float64.

    Rows of single precision are multiplied as such, some thousand at a time: each entry is then right to about 1e-6 of
    what it could be at most, far below what the ridge adds, in half the time (a sixty-fourth on some GPUs).
    """
    if total.dtype in (one.dtype, other.dtype) or (one.is_cuda and torch.backends.cuda.matmul.allow_tf32):
        total.baddbmm_(one.mT.to(total.dtype), other.to(total.dtype))
        return
    for start in range(0, one.shape[1], _ROWS_AT_ONCE):
        end = start + _ROWS_AT_ONCE
        total += one[:, start:end].mT @ other[:, start:end]


class Sums:
    """What a least-squares fit needs of its rows: sums of products, in float64.

    Args:
        gram: of the inputs; sums of several fits that read the same rows may share it.
        num_out: outputs of a block.
        bias: whether a constant may be fitted, too.
    """

    def __init__(self, gram: Gram, num_out: int, *, bias: bool) -> None:
        groups, width, _ = gram.matrix.shape
        self.bias = bias
        self.gram_of = gram
        self.cross_of = gram.matrix.new_zeros(groups, width, num_out)
        self.square = 0.0

    @property
    def num_rows(self) -> int:
        """How many rows there were."""
        return self.gram_of.num_rows

    @property
    def gram(self) -> Tensor:
        """``(group, input, input)``, with the constant where one is fitted."""
        return self.gram_of.matrix if self.bias else self.gram_of.matrix[:, :-1, :-1]

    @property
    def cross(self) -> Tensor:
        """``(group, input, output)``."""
        return self.cross_of if self.bias else self.cross_of[:, :-1]

    def add(self, read: Tensor, wanted: Tensor) -> None:
        """Take rows in: ``(group, row, input)``, the last input being 1, and ``(group, row, output)``.

        The Gram matrix is not touched: it may have taken them in before.
        """
        add_product(self.cross_of, read, wanted)
        self.square += float(torch.linalg.vector_norm(wanted, dtype=self.cross_of.dtype)) ** 2

    def subtract(self, matrix: Tensor) -> None:
        """Take from what is wanted what a matrix makes of the rows: ``(group, input, output)``, the last input being 1.

        What is left is right to the rounding of the sums: about a millionth of what was wanted.
        """
        made = self.gram_of.matrix @ matrix
        self.square += float((matrix * made).sum()) - 2 * float((matrix * self.cross_of).sum())
        if math.isfinite(self.square):
            self.square = max(self.square, 0.0)
        self.cross_of = self.cross_of - made

    def plus(self, other: Sums) -> Sums:
        """The sums of both's rows."""
        gram = Gram.__new__(Gram)
        gram.matrix = self.gram_of.matrix + other.gram_of.matrix
        gram.num_rows = self.num_rows + other.num_rows
        both = Sums.__new__(Sums)
        both.bias, both.gram_of = self.bias, gram
        both.cross_of, both.square = self.cross_of + other.cross_of, self.square + other.square
        return both

    def solve(self, strength: float) -> Tensor:
        """Find the matrix that brings the rows nearest to what is wanted, and is not far from 0.

        Args:
            strength: weight of the matrix's squared norm, in units of the inputs' mean variance; a constant is free.

        Returns:
            ``(group, input, output)``; the last input is the constant where there is one.
        """
        gram = self.gram
        diagonal = gram.diagonal(dim1=1, dim2=2)
        offset = gram[:, :-1, -1].square() / max(self.num_rows, 1) if self.bias else None
        own = diagonal if offset is None else diagonal[:, :-1] - offset
        # Of inputs that never vary only rounding is left, and it may be all that there is to divide by.
        size = torch.maximum(own.clamp(min=0).mean(1, keepdim=True), _VARIES * diagonal.mean(1, keepdim=True))
        size = torch.where(size > 0, size, torch.ones_like(size))  # they are 0
        penalty = (strength * size).expand(-1, diagonal.shape[1]).clone()
        if self.bias:
            penalty[:, -1] = 0
        penalised = gram + torch.diag_embed(penalty)
        factor, failed = torch.linalg.cholesky_ex(penalised)
        if bool(failed.any()):  # rounding has made it indefinite
            return torch.linalg.solve(penalised, self.cross)
        return torch.cholesky_solve(self.cross, factor)

    def error(self, matrix: Tensor) -> float:
        """The squared distance that a matrix leaves on these rows."""
        gain = 2 * (matrix * self.cross).sum() - (matrix * (self.gram @ matrix)).sum()
        return self.square - float(gain)


@dataclass(frozen=True)
class Fit:
    """A change of a matrix, and what it does on rows that it was not fitted on.

    Attributes:
        matrix: ``(group, input, output)``, fitted on all rows.
        tried: the same, fitted on all but those held out.
        strength: of the ridge.
        left: share of the squared distance on the held-out rows that the fit on the other rows leaves.
    """

    matrix: Tensor
    tried: Tensor
    strength: float
    left: float


def fit(seen: Sums, held_out: Sums, *, start: float = STRENGTHS[0]) -> Fit | None:
    """Fit on some rows, choose the strength on the others, and fit on all; None where nothing helps the others.

    Args:
        seen: sums of the rows that are fitted on.
        held_out: sums of the others.
        start: the strength that is tried first, one of :data:`STRENGTHS`: from there on it goes to weaker ones as long
            as that helps the others, or to stronger ones where it does not help at once.
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
