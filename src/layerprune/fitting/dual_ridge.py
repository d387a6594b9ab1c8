"""Ridge regression in dual form, for tensors with more channels than rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layerprune.fitting.ridge import STRENGTHS


@dataclass(frozen=True, eq=False, kw_only=True)
class DualFit:
    """``wanted ≈ left · right · read + constant``: a matrix of low rank, in two factors.

    Attributes:
        left: ``(output, row)``.
        right: ``(row, input)``.
        constant: ``(output,)``; None if none was fitted.
        strength: strength of the ridge.
        left_over: squared error on held-out rows of a fit without them, relative to their squared size.
    """

    left: Tensor
    right: Tensor
    constant: Tensor | None
    strength: float
    left_over: float


class DualRidge:
    """Ridge regression that keeps its rows: N rows take N × N numbers, for any number of inputs.

    The result equals that of :class:`Sums` (dual ridge regression, Saunders et al., 1998).

    Args:
        bias: whether to fit a constant, too.
    """

    def __init__(self, *, bias: bool) -> None:
        self.bias = bias
        self.read: list[Tensor] = []
        self.wanted: list[Tensor] = []
        self.held_out: list[bool] = []
        self.num_bytes = 0

    @property
    def num_rows(self) -> int:
        return len(self.held_out)

    def add(self, read: Tensor, wanted: Tensor, *, held_out: bool) -> None:
        """Add rows: ``(row, input)`` and ``(row, output)``."""
        self.read.append(read)
        self.wanted.append(wanted)
        self.held_out += [held_out] * len(read)
        self.num_bytes += 8 * (read.numel() + wanted.numel())

    def fit(self) -> DualFit | None:
        """Choose the strength on the held-out rows, then fit on all; None if no strength reduces the held-out error."""
        read, wanted = torch.cat(self.read), torch.cat(self.wanted)
        mask = torch.tensor(self.held_out, device=read.device)
        size = float(wanted[mask].square().sum())
        if not bool(mask.any()) or bool(mask.all()) or size == 0:
            return None
        seen = _Dual(read[~mask], wanted[~mask], self.bias)
        others = seen.products(read[mask])
        best: tuple[float, float] | None = None
        for strength in STRENGTHS:
            found = others @ seen.solve(strength) + seen.wanted_mean
            error = float((wanted[mask] - found).square().sum())
            if best is not None and error > best[0]:
                break
            best = error, strength
        if best is None or not best[0] < size * (1 - 1e-4):
            return None
        both = _Dual(read, wanted, self.bias)
        left = both.solve(best[1]).T
        right = both.read
        constant = both.wanted_mean - left @ (right @ both.read_mean) if self.bias else None
        return DualFit(left=left, right=right, constant=constant, strength=best[1], left_over=best[0] / size)


class _Dual:
    """Centred rows and their Gram matrix, ``(row, row)``."""

    def __init__(self, read: Tensor, wanted: Tensor, bias: bool) -> None:
        self.read_mean = read.mean(0) if bias else torch.zeros_like(read[0])
        self.wanted_mean = wanted.mean(0) if bias else torch.zeros_like(wanted[0])
        self.read = read - self.read_mean
        self.wanted = wanted - self.wanted_mean
        self.gram = self.read @ self.read.T

    def products(self, read: Tensor) -> Tensor:
        return (read - self.read_mean) @ self.read.T

    def solve(self, strength: float) -> Tensor:
        """Weights of the rows, ``(row, output)``; the strength is in units of the inputs' mean variance."""
        size = float(self.gram.diagonal().sum()) / self.read.shape[1]
        penalised = self.gram + torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device) * (
            strength * (size or 1.0)
        )
        factor, failed = torch.linalg.cholesky_ex(penalised)
        if bool(failed):  # indefinite because of rounding
            return torch.linalg.lstsq(penalised, self.wanted).solution
        return torch.cholesky_solve(self.wanted, factor)
