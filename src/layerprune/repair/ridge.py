"""Ridge regression from sums: rows stream by, and what is kept is their Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Strengths that are tried, strongest first, in units of the mean variance of the inputs.
STRENGTHS = (100.0, 20.0, 5.0, 1.0, 0.2, 0.05, 0.01, 1e-3, 1e-4)


class Sums:
    """What a least-squares fit needs of its rows: sums of products, in float64.

    Args:
        groups: blocks of the matrix, each with inputs of its own.
        num_in: inputs of a block.
        num_out: outputs of a block.
        bias: whether a constant may be fitted, too.
        device: where the rows come from.
    """

    def __init__(self, groups: int, num_in: int, num_out: int, *, bias: bool, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        width = num_in + bias
        self.bias = bias
        self.gram = torch.zeros(groups, width, width, dtype=dtype, device=device)
        self.cross = torch.zeros(groups, width, num_out, dtype=dtype, device=device)
        self.square = 0.0
        self.num_rows = 0

    def add(self, read: Tensor, wanted: Tensor) -> None:
        """Take rows in: ``(group, row, input)`` and ``(group, row, output)``."""
        if self.bias:
            read = torch.cat([read, read.new_ones(*read.shape[:2], 1)], 2)
        self.gram.baddbmm_(read.mT, read)
        self.cross.baddbmm_(read.mT, wanted)
        self.square += float(wanted.square().sum())
        self.num_rows += read.shape[1]

    def plus(self, other: Sums) -> Sums:
        """The sums of both's rows."""
        both = Sums.__new__(Sums)
        both.bias = self.bias
        both.gram, both.cross = self.gram + other.gram, self.cross + other.cross
        both.square, both.num_rows = self.square + other.square, self.num_rows + other.num_rows
        return both

    def solve(self, strength: float) -> Tensor:
        """Find the matrix that brings the rows nearest to what is wanted, and is not far from 0.

        Args:
            strength: weight of the matrix's squared norm, in units of the inputs' mean variance; a constant is free.

        Returns:
            ``(group, input, output)``; the last input is the constant where there is one.
        """
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        offset = self.gram[:, :-1, -1].square() / max(self.num_rows, 1) if self.bias else None
        own = diagonal if offset is None else diagonal[:, :-1] - offset
        size = own.clamp(min=0).mean(1, keepdim=True)
        size = torch.where(size > 0, size, torch.ones_like(size))  # inputs that never vary
        penalty = (strength * size).expand(-1, diagonal.shape[1]).clone()
        if self.bias:
            penalty[:, -1] = 0
        penalised = self.gram + torch.diag_embed(penalty)
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
        strength: of the ridge.
        left: share of the squared distance on the held-out rows that the fit on the other rows leaves.
    """

    matrix: Tensor
    strength: float
    left: float


def fit(seen: Sums, held_out: Sums) -> Fit | None:
    """Fit on some rows, choose the strength on the others, and fit on all; None where nothing helps the others."""
    if seen.num_rows == 0 or held_out.square == 0:
        return None
    best: tuple[float, float] | None = None
    for strength in STRENGTHS:
        error = held_out.error(seen.solve(strength))
        if best is not None and error > best[0]:
            break
        best = error, strength
    if best is None or not best[0] < held_out.square * (1 - 1e-4):
        return None
    return Fit(seen.plus(held_out).solve(best[1]), best[1], best[0] / held_out.square)
