"""Solves the new weights of one layer from all batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerprune.errors import NotFiniteError
from layerprune.fidelity import square
from layerprune.fitting import (
    STRENGTHS,
    Fit,
    Gram,
    Sums,
    add_output,
    as_weight,
    channel_dim,
    fit,
    layout,
    matrix_of,
    num_groups,
    num_rows,
    output_of,
    rows_of,
)
from layerprune.repair.mean import fold_mean, spread
from layerprune.repair.report import Refitted
from layerprune.repair.sites.permutation import Permutation
from layerprune.repair.sites.sites import Site
from layerprune.repair.stream.site_batch import SiteBatch
from layerprune.torch_internals import parameters_of

_MOVED = 1e-9  # relative squared distance up to which a tensor counts as the same: float32 rounds that much
_FEWEST_SAMPLES = 128  # images from which a convolution's rows are taken: the places of one image are much alike

#: Rows that are taken from the batches, per input. Measured on a language model: 8 keep four fifths of the gain of all
#: rows (64), 16 nine tenths, 32 all but a hundredth.
ROWS_PER_INPUT = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class Change:
    """New weights of a site, and their effect on the tensor that the site feeds.

    Attributes:
        site: the site.
        values: the new weights, by name.
        delta: makes the change of the transform's output, times its scale; its elements in order, in any shape.
        passed_scale: scale of the channels behind the normalization that is passed; None without one.
        add: changes the tensor without making ``delta`` first, and returns whether it could. None where it never can.
    """

    site: Site
    values: Mapping[str, Tensor]
    delta: Callable[[SiteBatch], Tensor]
    passed_scale: Tensor | None = None
    add: Callable[[SiteBatch], bool] | None = None

    @torch.no_grad()
    def make(self, view: SiteBatch) -> None:
        """Add the effect of the new weights to the tensor that the site feeds."""
        if view.found is None or (self.add is not None and self.add(view)):
            return  # the transform has not run yet, or the tensor is changed already
        delta, passed = moved_on(self.delta(view), self.site.moves), self.site.passed
        if passed is None or view.inner is None:
            view.there.add_(delta.reshape(view.there.shape))
            return
        before = passed.norm.of(view.inner)
        view.inner.add_(delta.reshape(view.inner.shape))
        step = passed.norm.of(view.inner) - before
        if self.passed_scale is not None:
            step = step * self.passed_scale.to(step.dtype)
        view.there.add_(moved_on(step, passed.moves).reshape(view.there.shape))


def moved_on(tensor: Tensor, moves: Permutation | None) -> Tensor:
    """Elements in the order behind a permutation, in any shape."""
    return tensor if moves is None else moves.forth(tensor)


def moved_back(tensor: Tensor, moves: Permutation | None) -> Tensor:
    """Elements in the order before a permutation, in any shape."""
    return tensor if moves is None else moves.back(tensor)


def unscaled(wanted: Tensor, scale: Tensor | None) -> Tensor:
    """The wanted tensor in front of a scale of its last dimension; 0 where the scale is almost 0."""
    if scale is None:
        return wanted
    factor = scale.to(wanted.dtype)
    return torch.where(factor.abs() > 1e-6, wanted / factor, torch.zeros_like(wanted))


#: Below this share of the wanted output the difference is computed directly: sums of products in single precision are
#: right to a millionth of the whole.
_TELLS = 1e-3


def _not_finite(site: Site, view: SiteBatch) -> NotFiniteError:
    return NotFiniteError(
        f"batch {view.number} of the calibration data makes '{site.name}' feed values that are not finite: "
        "leave it out, or look for NaN in the data and in the weights"
    )


def _is_finite(view: SiteBatch) -> bool:
    return bool(view.read.isfinite().all()) and bool(view.wanted.isfinite().all())


class Solver:
    """Solves one site after the other: ``min ‖ΔW a + Δb − δ‖² + λ‖ΔW‖²``, δ the wanted change of its output.

    The ridge strengths are chosen on held-out rows: of the batches from ``first_held_out`` on, or ``share_held_out`` of
    a single batch. ``model`` is the pruned model with its old weights, ``memory_bytes`` the limit for one site.
    """

    def __init__(
        self, model: nn.Module, num_batches: int, first_held_out: int, share_held_out: float, memory_bytes: int
    ) -> None:
        self.model = model
        self.num_batches = num_batches
        self.first_held_out = first_held_out
        self.share_held_out = share_held_out
        self.memory_bytes = memory_bytes
        self.grams: tuple[object, list[Gram]] | None = None
        self.ready: tuple[str, tuple[Sums, Sums]] | None = None
        self.strength = STRENGTHS[0]

    def why_not(self, site: Site) -> str:
        """Why a site cannot be solved within the memory; empty if it can."""
        need = self.plan(site)[1]
        if need <= self.memory_bytes:
            return ""
        return f"solving it takes {need:,} bytes, more than memory_bytes={self.memory_bytes:,}"

    def plan(self, site: Site) -> tuple[bool, int]:
        """Whether a site is solved by its outputs, as the sums of its inputs do not fit; and the bytes it takes."""
        groups, num_out, num_in = matrix_of(self.model.get_submodule(site.name)).shape

        def need(width: int) -> int:
            # The sums of two parts of the data, of both, the matrix that is solved, and its factor.
            return 5 * 8 * groups * (width + 1) * (width + 1 + num_out)

        by_output = need(num_in) > self.memory_bytes and num_out < num_in and site.passed is None
        return by_output, need(num_out if by_output else num_in)

    def fits_ahead(self, site: Site) -> bool:
        """Whether a site whose tensor depends on its input alone can be solved before it runs."""
        module = self.model.get_submodule(site.name)
        return channel_dim(module) == -1 and not self.plan(site)[0] and not self.why_not(site)

    def moved(self, site: Site, views: Sequence[SiteBatch]) -> float:
        """The distance of the tensor that a site feeds from the original's, after the repair so far.

        Returns:
            The squared distance, relative to the squared tensor; 0 where it is rounding.

        Raises:
            NotFiniteError: the tensor holds values that are not finite.
        """
        if views[0].found is None:
            return self.moved_ahead(site, views)
        change = size = 0.0
        for view in views:
            change += square(view.missing, view.mask)
            size += square(view.wanted, view.mask)
            if not change + size < math.inf:
                raise _not_finite(site, view)
        return (change / size if size else 1.0) if change > _MOVED * size else 0.0

    def moved_ahead(self, site: Site, views: Sequence[SiteBatch]) -> float:
        """The same before the transform has run, from the sums of its inputs and of its wanted outputs."""
        module = self.model.get_submodule(site.name)
        parts = self.sums(site, module, views, by_output=False)
        size = sum(part.square for part in parts)
        for part in parts:
            part.subtract(self.with_bias(module))
        change = sum(part.square for part in parts)
        if not math.isfinite(change + size):
            raise _not_finite(site, next((view for view in views if not _is_finite(view)), views[0]))
        if change < _TELLS * size:
            parts = self.sums(site, module, views, by_output=False, ran=True)
            change = sum(part.square for part in parts)
        self.ready = site.name, parts
        return (change / size if size else 1.0) if change > _MOVED * size else 0.0

    def with_bias(self, module: nn.Module) -> Tensor:
        """Weight and bias as one matrix for rows with a 1 behind them, ``(group, input + 1, output)``."""
        matrix, bias = matrix_of(module).mT, parameters_of(module).get("bias")
        last = matrix.new_zeros(matrix.shape[0], 1, matrix.shape[2])
        if bias is not None:
            last += bias.detach().to(matrix.dtype).reshape(last.shape)
        return torch.cat([matrix, last], 1)

    def solve(self, site: Site, views: Sequence[SiteBatch]) -> tuple[Refitted, Change | None]:
        """Find new weights; None where none help on the held-out rows."""
        module = self.model.get_submodule(site.name)
        by_output = self.plan(site)[0]
        ready, self.ready = self.ready, None
        known = ready is not None and ready[0] == site.name
        seen, held_out = ready[1] if ready and known else self.sums(site, module, views, by_output=by_output)
        found = self.fit(seen, held_out)
        num_inputs = seen.gram_of.matrix.shape[1] - 1
        left, strength = (1.0, None) if found is None else (found.left, found.strength)
        told = Refitted(
            name=site.name,
            left=left,
            kept=found is not None,
            strength=strength,
            num_rows=seen.num_rows,
            num_inputs=num_inputs,
        )
        return told, None if found is None else self.change(site, module, found, by_output=by_output)

    def fit(self, seen: Sums, held_out: Sums) -> Fit | None:
        """Fit, and try the strength of the last fit first: neighbouring layers need about the same."""
        found = fit(seen, held_out, start=self.strength)
        if found is not None:
            self.strength = found.strength
        return found

    def fold(self, site: Site, views: Sequence[SiteBatch], *, new_biases: bool) -> tuple[Refitted, Change | None]:
        """Find a new bias or running mean; None where none helps on the held-out rows."""
        told, values, shift = fold_mean(site, self.model, views, self.split, new_biases=new_biases)
        module = self.model.get_submodule(site.name)
        return told, None if shift is None else Change(
            site=site, values=values, delta=lambda view: spread(module, view, shift)
        )

    def change(self, site: Site, module: nn.Module, found: Fit, *, by_output: bool) -> Change:
        delta, held = found.matrix.mT, parameters_of(module)["weight"]
        bias, shift, matrix, scale = parameters_of(module).get("bias"), None, matrix_of(module), site.scale(self.model)
        values: dict[str, Tensor] = {}
        assert held is not None
        if bias is not None:
            delta, constant = delta[..., :-1], delta[..., -1]
            values[f"{site.name}.bias"] = bias.detach() + constant.flatten().to(bias.dtype)
            shift = values[f"{site.name}.bias"] - bias.detach()
        if by_output:
            delta = delta @ matrix
        weight = values[f"{site.name}.weight"] = as_weight(module, matrix + delta)
        step = weight - held.detach()  # the change as the weight's dtype rounds it

        def moves(view: SiteBatch) -> Tensor:
            out = output_of(module, step, shift, view.read)
            return out if scale is None else out * scale.to(out.dtype).reshape(-1, *[1] * (-1 - channel_dim(module)))

        if site.passed is not None:
            return Change(site=site, values=values, delta=moves, passed_scale=site.passed.scale(self.model))

        def add(view: SiteBatch) -> bool:
            return add_output(module, step, shift, view.read, view.there)

        return Change(site=site, values=values, delta=moves, add=add if scale is None and site.moves is None else None)

    def sums(
        self, site: Site, module: nn.Module, views: Sequence[SiteBatch], *, by_output: bool, ran: bool = False
    ) -> tuple[Sums, Sums]:
        """The sums over fitted rows and over held-out rows; ``ran``: run a transform that has no output yet."""
        matrix, scale = matrix_of(module), site.scale(self.model)
        groups, num_out, num_in = matrix.shape
        width = num_out if by_output else num_in
        key = None if by_output else (site.source, layout(module), [view.number for view in views])
        known = self.grams is not None and key is not None and self.grams[0] == key
        if not known:
            self.grams = key, [Gram(groups, width, device=matrix.device) for _ in range(2)]
        assert self.grams is not None
        has_bias = parameters_of(module).get("bias") is not None
        parts = tuple(Sums(gram, num_out, bias=has_bias) for gram in self.grams[1])
        if scale is not None:
            scale = scale.reshape(groups, 1, -1)
        for number, rows, wanted in self.rows(site, module, views, width, ran=ran):
            if by_output:
                rows = rows.to(matrix.dtype) @ matrix.mT
            wanted = unscaled(wanted, scale)
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
            split = self.split(number, rows.shape[1])
            for part, some in zip(parts, (slice(None, split), slice(split, None)), strict=True):
                if not known:
                    part.gram_of.add(rows[:, some])
                part.add(rows[:, some], wanted[:, some])
        return parts[0], parts[1]

    def split(self, number: int, num: int) -> int:
        if self.num_batches == 1:
            return round(num * (1 - self.share_held_out))
        return num if number < self.first_held_out else 0

    def rows(
        self, site: Site, module: nn.Module, views: Sequence[SiteBatch], width: int, *, ran: bool
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Batch number, rows of a transform's input, and rows of the wanted change of its output."""
        for view, some in self.picked(module, views, width):
            missing = moved_back(view.missing, site.moves)
            if ran and view.found is None:
                missing = missing.reshape(-1) - module(view.read).reshape(-1)
            for rows, wanted in rows_of(module, view.read, missing, view.mask, some):
                yield view.number, rows, wanted

    def picked(
        self, module: nn.Module, views: Sequence[SiteBatch], width: int
    ) -> Iterator[tuple[SiteBatch, Tensor | None]]:
        """Pick rows of each batch at random, the same for all transforms that read a tensor; None: all rows."""
        counts = [num_rows(module, view.read, view.wanted, view.mask) for view in views]
        total, picks = sum(num for num, _ in counts), sum(num // each for num, each in counts)
        share = ROWS_PER_INPUT * width / max(total, 1)
        if any(each > 1 for _, each in counts) or num_groups(module) > 1:
            share = max(share, _FEWEST_SAMPLES / max(picks, 1))
        for view, (num, each) in zip(views, counts, strict=True):
            some = None
            if share < 1:
                draw = torch.Generator().manual_seed(view.number)
                some = torch.randperm(num // each, generator=draw)[: math.ceil(share * num / each)].sort().values
            yield view, some
