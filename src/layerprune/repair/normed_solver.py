"""Solves a layer whose output is normalized before it is added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerprune.fitting import Fit, Gram, Sums, matrix_of, rows_of, single
from layerprune.repair.report import Refitted
from layerprune.repair.sites.sites import Site
from layerprune.repair.sites.token_norms import Norm
from layerprune.repair.solver import Change, Solver, moved_back, unscaled
from layerprune.repair.stream.site_batch import SiteBatch
from layerprune.torch_internals import parameters_of

#: The first round takes the token sizes under the old weights; later rounds take those under the new weights.
MOST_ROUNDS = 4

#: Another round is worth it while it lowers the distance by this share.
_WORTH = 0.01


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of one batch, or a part of them.

    Attributes:
        read: the transform's input and a 1 behind it, ``(1, row, input + 1)``.
        inner: the norm's input now, ``(1, row, channel)``.
        wanted: the wanted output of the norm, same shape.
        is_held_out: whether no weights are fitted on these rows.
    """

    read: Tensor
    inner: Tensor
    wanted: Tensor
    is_held_out: bool


@torch.no_grad()
def solve_normed(solver: Solver, site: Site, views: Sequence[SiteBatch]) -> tuple[Refitted, Change | None]:
    """Find new weights of a transform in front of a norm; None where none help on the held-out rows.

    The wanted input of the norm is ``u*``: the wanted output less ``b``, divided by ``g``, times the token's own size.
    With that size fixed this is a linear fit of rows divided by the size, because the norm divides the error as well.
    The size changes with the weights, so the fit repeats while the norm's output gets nearer on held-out rows.
    """
    found = _Normed(solver, site, views).run()
    module = solver.model.get_submodule(site.name)
    num_inputs = matrix_of(module).shape[2]
    change = None if found.best is None else solver.change(site, module, found.best, by_output=False)
    strength = None if found.best is None else found.best.strength
    return Refitted(
        name=site.name,
        left=found.left,
        kept=change is not None,
        strength=strength,
        num_rows=found.num_rows,
        num_inputs=num_inputs,
    ), change


class _Normed:
    """Fits the weights round by round."""

    def __init__(self, solver: Solver, site: Site, views: Sequence[SiteBatch]) -> None:
        assert site.passed is not None
        self.solver = solver
        self.site = site
        self.views = views
        self.norm: Norm = site.passed.norm
        self.module: nn.Module = solver.model.get_submodule(site.name)
        self.has_bias = parameters_of(self.module).get("bias") is not None
        self.scale = site.scale(solver.model)
        self.behind = site.passed.scale(solver.model)
        self.best: Fit | None = None
        self.left = 1.0
        self.num_rows = 0

    def run(self) -> _Normed:
        before = left = self.error(None)
        tried: Tensor | None = None
        for _ in range(MOST_ROUNDS if before else 0):
            found = self.solver.fit(*self.sums(tried))
            if found is None:
                break
            error = self.error(found.tried)
            if not error < left * (1 - (_WORTH if tried is not None else 1e-4)):
                break
            left, self.best, tried = error, found, found.tried
        self.left = left / before if before else 1.0
        return self

    def rows(self) -> Iterator[_Rows]:
        assert self.site.passed is not None
        width = matrix_of(self.module).shape[2]
        for view, some in self.solver.picked(self.module, self.views, width):
            assert view.inner is not None
            inner = view.inner.to(single(view.inner))
            channels = inner.shape[-1]
            missing = moved_back(view.missing, self.site.passed.moves).reshape(inner.shape)
            both = torch.cat([inner, self.norm.of(inner) + unscaled(missing, self.behind)], -1)
            tokens = [moved_back(part, self.site.moves).reshape(-1, channels) for part in both.split(channels, -1)]
            for read, rows in rows_of(self.module, view.read, torch.cat(tokens, -1), view.mask, some):
                read = torch.cat([read, read.new_ones(*read.shape[:2], 1)], 2)
                split = self.solver.split(view.number, read.shape[1])
                for part, held_out in ((slice(None, split), False), (slice(split, None), True)):
                    inner_rows, wanted = rows[:, part].split(channels, -1)
                    yield _Rows(read[:, part], inner_rows, wanted, held_out)

    def with_change(self, rows: _Rows, matrix: Tensor | None) -> Tensor:
        """The norm's input with a change of the weights, ``(1, row, channel)``."""
        if matrix is None:
            return rows.inner
        read = rows.read if self.has_bias else rows.read[..., :-1]
        step = read @ matrix.to(read.dtype)
        return rows.inner + (step if self.scale is None else step * self.scale.to(step.dtype))

    def sums(self, tried: Tensor | None) -> tuple[Sums, Sums]:
        """The sums over fitted rows and over held-out rows, each row divided by its size now."""
        matrix = matrix_of(self.module)
        grams = [Gram(1, matrix.shape[2], device=matrix.device) for _ in range(2)]
        parts = tuple(Sums(gram, matrix.shape[1], bias=self.has_bias) for gram in grams)
        typical = self.typical_size
        for rows in self.rows():
            like = self.with_change(rows, tried)
            step = unscaled(self.norm.before(rows.wanted, like) - rows.inner, self.scale)
            weight = typical / self.norm.size(like).clamp_min(1e-3 * typical)
            parts[rows.is_held_out].gram_of.add(rows.read * weight)
            parts[rows.is_held_out].add(rows.read * weight, step * weight)
        self.num_rows = parts[0].num_rows
        return parts[0], parts[1]

    @property
    def typical_size(self) -> Tensor:
        """The mean size of tokens; weights relative to it keep the meaning of the ridge strengths."""
        view = self.views[0]
        assert view.inner is not None
        return self.norm.size(view.inner.to(single(view.inner))).mean().clamp_min(1e-30)

    def error(self, matrix: Tensor | None) -> float:
        """The squared distance of the norm's output from the wanted one on held-out rows, with a change of weights."""
        total = 0.0
        for rows in self.rows():
            if rows.is_held_out:
                far = self.norm.of(self.with_change(rows, matrix)) - rows.wanted
                far = far if self.behind is None else far * self.behind.to(far.dtype)
                total += float(far.square().sum(dtype=torch.float64))
        return total
