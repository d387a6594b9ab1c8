"""Fits a projection: ridge regression of a tensor of the original on a tensor of the pruned model."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from layerprune.capture import Batch, Sandbox
from layerprune.channels import reader_for
from layerprune.edits import Fold
from layerprune.errors import CalibrationError, NotFiniteError
from layerprune.fidelity import HeldOutVerdict
from layerprune.fitting.dual_ridge import DualRidge
from layerprune.fitting.input_probe import InputProbe
from layerprune.fitting.layer_matrix import exact
from layerprune.fitting.ridge import Gram, Sums, fit
from layerprune.surgery import Folded, Projection, folded
from layerprune.tables import ShownAsTable, Table, brief

_SHARE_HELD_OUT = 0.25
_PIECE_BYTES = 64 * 2**20  # per piece of rows in float64


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One fitted projection.

    Attributes:
        value: the replaced tensor.
        source: the tensor that the projection reads.
        readers: the transforms that the projection was folded into.
        left: squared error on held-out rows, relative to the squared size of ``value``.
        strength: strength of the ridge; None if no fit helped, and the projection is 0.
        num_rows: tokens or positions in the fit.
        num_inputs: channels of ``source``.
        num_samples: images in the fit, whose positions are correlated; 0 if rows are tokens.
    """

    value: str
    source: str
    readers: tuple[str, ...]
    left: float
    strength: float | None
    num_rows: int
    num_inputs: int
    num_samples: int = 0

    @property
    def is_thin(self) -> bool:
        """Whether the fit had fewer independent rows than inputs."""
        return (self.num_samples or self.num_rows) < self.num_inputs

    def __str__(self) -> str:
        return f"{self.value} from {self.source}: {self.left:.1%} left, in {', '.join(self.readers)}"

    def __repr__(self) -> str:
        return brief(self, str(self))


@dataclass(frozen=True)
class Projections:
    """Fitted projections, and the weights of the transforms that they are folded into.

    Attributes:
        fitted: one record per projection, in order of execution.
        matrices: the projections, by fold.
        weights: the folded weights, by fold.
        notes: notes for the user.
    """

    fitted: tuple[Fitted, ...] = ()
    matrices: Mapping[Fold, Projection] = field(default_factory=dict[Fold, Projection], repr=False)
    weights: Folded = field(default_factory=dict[Fold, Mapping[str, Tensor]], repr=False)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return brief(self, f"{len(self.fitted)} projections, folded into {len(self.weights)} transforms")

    @property
    def report(self) -> ProjectionReport:
        """The part that is kept after the weights are written."""
        few = [one for one in self.fitted if one.is_thin]
        note = ""
        if few:
            worst = max(few, key=lambda one: one.num_inputs / max(one.num_samples or one.num_rows, 1))
            on = f"{worst.num_samples} images" if worst.num_samples else f"{worst.num_rows} rows"
            note = (
                f"{len(few)} of {len(self.fitted)} projections have more inputs than the samples that they were fitted "
                f"on ('{worst.value}': {worst.num_inputs:,} inputs, {on}): give more calibration data"
            )
        return ProjectionReport(self.fitted, (*self.notes, *((note,) if note else ())))


@dataclass(frozen=True)
class ProjectionReport(ShownAsTable):
    """Fitted projections and their errors.

    Attributes:
        fitted: one record per projection, in order of execution.
        notes: notes for the user.
        verdict: comparison on held-out data; None if a repair follows, whose report then holds it.
    """

    fitted: tuple[Fitted, ...] = ()
    notes: tuple[str, ...] = ()
    verdict: HeldOutVerdict | None = None

    def as_table(self) -> Table:
        """One row for each projection."""
        return Table(
            title=f"{len(self.fitted)} projections fitted and folded",
            facts=() if self.verdict is None else self.verdict.facts,
            columns=("replaced tensor", "projected from", "folded into", "error left"),
            rows=tuple((one.value, one.source, ", ".join(one.readers), f"{one.left:.1%}") for one in self.fitted),
            notes=self.notes,
            num_left=3,
        )

    def __repr__(self) -> str:
        worst = max((one.left for one in self.fitted), default=0.0)
        return brief(self, f"{len(self.fitted)} projections folded, at most {worst:.1%} of the error left")

    def __str__(self) -> str:
        lines = [f"{len(self.fitted)} projections fitted and folded", *(f"  {one}" for one in self.fitted)]
        lines += [] if self.verdict is None else [str(self.verdict)]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


class TooLarge(CalibrationError):
    """A fit exceeds its memory limit."""


class ProjectionFitter:
    """Fits the projection of one tensor for all transforms that read it."""

    def __init__(self, original: Sandbox, pruned: InputProbe, folds: Sequence[Fold], memory_bytes: int) -> None:
        self.original = InputProbe(original)
        self.pruned = pruned
        self.folds = folds
        self.memory_bytes = memory_bytes
        self.reader = reader_for(original.model.get_submodule(folds[0].owner), folds[0])
        self.bias = all(edit.constant is not None for edit in folds)
        self.num_samples = 0

    def fit(self, batches: Sequence[Batch]) -> Projections:
        first = self.folds[0]
        if self.reader.num_axes:
            whole = batches[: first_of_last(len(batches))] if len(batches) > 1 else batches
            self.num_samples = sum(batch.num_samples for batch in whole)
        projection, one = self.by_sums(batches) if self.sums_fit else self.by_rows(batches)
        weights = {edit: folded(self.original.shade.model, edit, projection) for edit in self.folds}
        notes: tuple[str, ...] = ()
        if one.strength is None:
            notes = (
                f"'{first.value}' is no linear function of '{first.source}' at all, by the data: it is taken as 0",
            )
        return Projections((one,), dict.fromkeys(self.folds, projection), weights, notes)

    @property
    def num_out(self) -> int:
        return self.reader.num_in

    @property
    def sums_bytes(self) -> int:
        """Bytes of the sums of both parts of the data, their total, the penalised matrix and its factor."""
        width = self.folds[0].num_in + 1
        return 5 * 8 * width * (width + self.num_out)

    @property
    def sums_fit(self) -> bool:
        return self.sums_bytes <= self.memory_bytes

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs of the transforms in the pruned model and in the original, ``(row, channel)`` each."""
        first = self.folds[0]
        wanted = self.original.see(batch, [first])[first]
        read = self.pruned.see(batch, [first])[first]
        if not self.reader.num_axes:
            mask = batch.mask
            if mask is not None and read.dim() > 2 and read.shape[:2] == mask.shape:
                read, wanted = read[mask.bool()], wanted[mask.bool()]
        else:
            places = (slice(None), slice(None), *(slice(None, None, stride) for stride in first.strides))
            read, wanted = read[places].movedim(1, -1), wanted.movedim(1, -1)
        if read.shape[:-1] != wanted.shape[:-1]:
            raise CalibrationError(
                f"'{first.fqn}' reads {tuple(read.shape)} where the original has {tuple(wanted.shape)}: the "
                "calibration data have a size that the removal was not proven on"
            )
        read, wanted = read.flatten(0, -2), wanted.flatten(0, -2)
        if not bool(read.isfinite().all() and wanted.isfinite().all()):
            raise NotFiniteError(f"the calibration data make '{first.fqn}' read values that are not finite")
        return read, wanted

    def parts(self, batches: Sequence[Batch]) -> Generator[tuple[Tensor, Tensor, bool]]:
        """Rows in float64, and whether they are held out: the last quarter of the batches, or of a single batch."""
        first = first_of_last(len(batches))
        for number, batch in enumerate(batches):
            read, wanted = self.rows(batch)
            split = round(len(read) * (1 - _SHARE_HELD_OUT)) if len(batches) == 1 else len(read) * (number < first)
            for held_out, start, end in ((False, 0, split), (True, split, len(read))):
                step = max(1, _PIECE_BYTES // (8 * (read.shape[1] + wanted.shape[1])))
                for at in range(start, end, step):
                    piece = slice(at, min(at + step, end))
                    yield read[piece].to(exact(read)), wanted[piece].to(read.device, exact(read)), held_out

    def by_sums(self, batches: Sequence[Batch]) -> tuple[Projection, Fitted]:
        width = self.folds[0].num_in
        grams = [Gram(1, width, device=self.reader.tensor.device) for _ in range(2)]
        sums = [Sums(gram, self.num_out, bias=self.bias) for gram in grams]
        for read, wanted, held_out in self.parts(batches):
            inputs = torch.cat([read, read.new_ones(len(read), 1)], 1)[None]
            grams[held_out].add(inputs)
            sums[held_out].add(inputs, wanted[None])
        found = fit(*sums)
        if found is None:
            return self.nothing(sums[0].gram), self.fitted(1.0, None, sums[0].num_rows)
        matrix = found.matrix[0].T
        constant = matrix[:, -1] if self.bias else None
        return (
            Projection(matrix[:, :width], None, constant),
            self.fitted(found.left, found.strength, sums[0].num_rows),
        )

    def by_rows(self, batches: Sequence[Batch]) -> tuple[Projection, Fitted]:
        rows = DualRidge(bias=self.bias)
        for read, wanted, held_out in self.parts(batches):
            rows.add(read, wanted, held_out=held_out)
            need = 3 * rows.num_bytes + 4 * 8 * rows.num_rows**2
            if need > self.memory_bytes:
                raise TooLarge(
                    f"the projection of '{self.folds[0].source}' takes {self.sums_bytes:,} bytes by the sums of its "
                    f"{self.folds[0].num_in:,} inputs and more than {need:,} by its rows, where {self.memory_bytes:,} "
                    "are allowed: give fewer calibration data, or keep this group (protect=)"
                )
        found = rows.fit()
        if found is None:
            return self.nothing(rows.read[0]), self.fitted(1.0, None, rows.num_rows)
        projection = Projection(found.left, found.right, found.constant)
        return projection, self.fitted(found.left_over, found.strength, rows.held_out.count(False))

    def nothing(self, like: Tensor) -> Projection:
        return Projection(like.new_zeros(self.num_out, self.folds[0].num_in))

    def fitted(self, left: float, strength: float | None, num_rows: int) -> Fitted:
        first = self.folds[0]
        readers = tuple(edit.fqn for edit in self.folds)
        return Fitted(
            value=first.value,
            source=first.source,
            readers=readers,
            left=left,
            strength=strength,
            num_rows=num_rows,
            num_inputs=first.num_in,
            num_samples=self.num_samples,
        )


def first_of_last(num_batches: int) -> int:
    """Number of the first batch of the last quarter, at least one batch; this quarter chooses the strength."""
    return num_batches - max(1, round(num_batches * _SHARE_HELD_OUT))
