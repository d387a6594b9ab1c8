"""Folding: the projections of a plan, fitted front to back and multiplied into the transforms that take them in."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.calibration import Batch
from layerprune.edits import Edit, Fold, Shorten, folds_of, name_before
from layerprune.errors import CalibrationError
from layerprune.projection import Folded, Projection, folded, takes_constant
from layerprune.repair.changes import write
from layerprune.repair.ridge import Gram, Sums, fit
from layerprune.repair.rows import Rows
from layerprune.repair.transforms import exact
from layerprune.shadow import Shadow, real_shadow, short
from layerprune.surgery import applied
from layerprune.watch import FunctionWatch

_SHARE_HELD_OUT = 0.25
_PIECE_BYTES = 64 * 2**20  # of rows in float64, at a time


@dataclass(frozen=True)
class Fitted:
    """One projection that was fitted.

    Attributes:
        value: the tensor that it stands for.
        source: the tensor that it is a projection of.
        readers: the transforms that it was folded into.
        left: share of the squared size of ``value`` that it misses, on rows that it was not fitted on.
        strength: of the ridge; None where nothing helped, and the projection is 0.
        num_rows: tokens or places that it was fitted on.
        num_inputs: channels of ``source``.
    """

    value: str
    source: str
    readers: tuple[str, ...]
    left: float
    strength: float | None
    num_rows: int
    num_inputs: int

    def __str__(self) -> str:
        return f"{self.value} from {self.source}: {self.left:.1%} left, in {', '.join(self.readers)}"


@dataclass(frozen=True)
class Projections:
    """Projections that were fitted, and what they make of the transforms that take them in.

    Attributes:
        fitted: front to back.
        matrices: the projections themselves, by the transforms' edits.
        weights: the new weights of the transforms, by their edits.
        notes: what the user should know.
    """

    fitted: tuple[Fitted, ...] = ()
    matrices: Mapping[Fold, Projection] = field(default_factory=dict[Fold, Projection], repr=False)
    weights: Folded = field(default_factory=dict[Fold, Mapping[str, Tensor]], repr=False)
    notes: tuple[str, ...] = ()


def fold_into(
    original: nn.Module,
    pruned: nn.Module,
    batches: Sequence[Batch],
    edits: Sequence[Edit],
    *,
    memory_bytes: int,
    written: Collection[str] = (),
) -> Projections:
    """Fit the projections of a plan, and write the weights that take them in into the pruned model.

    Front to back: each is fitted to the original's tensor, from what the pruned model makes of the same batch by then.
    The strength of the ridge is chosen on the last quarter of the data. Both models run in eval mode, on copies.

    Args:
        original: the model before pruning; it stays as it is.
        pruned: what surgery has left of it.
        batches: calibration data.
        edits: what was done to it.
        memory_bytes: what one fit may take.
        written: names of parameters that the forward writes into.

    Raises:
        CalibrationError: a batch does not run, or a fit takes more memory than allowed.
    """
    folds = folds_of(edits)
    if not folds:
        return Projections()
    shortens = [edit for edit in edits if isinstance(edit, Shorten)]
    names = {name_before(name, shortens): name for name, _ in pruned.named_modules()}
    before, after = real_shadow(original, written=written), real_shadow(pruned, written=written)
    found: list[Projections] = []
    for some in _stages(_Side(after.model, after, names), batches[0], folds):
        fitter = _Fitter(before, _Side(after.model, after, names), some, memory_bytes)
        found.append(fitter.fit(batches))
        values = {f"{names[e.fqn]}.{key}": new for e, held in found[-1].weights.items() for key, new in held.items()}
        write(pruned, values)  # the shadow shares its parameters, but for those that the forward writes into
    return _together(found)


def fold_alone(
    model: nn.Module,
    sets: Iterable[Sequence[Edit]],
    batches: Sequence[Batch],
    *,
    memory_bytes: int,
    written: Collection[str] = (),
) -> Projections:
    """Fit the projections of several sets of edits, each as if it was made alone; the model stays as it is.

    Args:
        model: the original.
        sets: the edits of each; those without projections are passed over.
        batches: calibration data.
        memory_bytes: what one fit may take; a projection that takes more is left out, and a note says so.
        written: names of parameters that the forward writes into.

    Raises:
        CalibrationError: a batch does not run.
    """
    before, after = real_shadow(model, written=written), real_shadow(model, written=written)
    found: list[Projections] = []
    for edits in sets:
        folds = folds_of(edits)
        if not folds:
            continue
        with applied(after.model, edits):
            shortens = [edit for edit in edits if isinstance(edit, Shorten)]
            names = {name_before(name, shortens): name for name, _ in after.model.named_modules()}
            for some in _by_value(folds):
                try:
                    found.append(_Fitter(before, _Side(after.model, after, names), some, memory_bytes).fit(batches))
                except _TooLarge as error:
                    found.append(Projections(notes=(str(error),)))
    return _together(found)


def missed_by(
    model: nn.Module,
    edits: Sequence[Edit],
    batches: Sequence[Batch],
    found: Projections,
    *,
    written: Collection[str] = (),
) -> list[tuple[float, float]] | None:
    """How far projections are from what they stand for, on each batch: the squared distance, and the squared size.

    Args:
        model: the original.
        edits: what a removal does.
        batches: calibration data.
        found: what :func:`fold_alone` has fitted for it.
        written: names of parameters that the forward writes into.

    Returns:
        A pair of numbers for each batch; None where a projection of the removal was not fitted.
    """
    folds = folds_of(edits)
    if not folds or not all(edit in found.matrices for edit in folds):
        return None
    before, after = real_shadow(model, written=written), real_shadow(model, written=written)
    pairs = [(0.0, 0.0)] * len(batches)
    with applied(after.model, edits):
        for some in _by_value(folds):
            fitter = _Fitter(before, _Side(after.model, after), some, 0)
            for number, batch in enumerate(batches):
                read, wanted = (rows.to(exact(rows)) for rows in fitter.rows(batch))
                error = wanted - found.matrices[some[0]].of(read)
                change, size = pairs[number]
                pairs[number] = change + float(error.square().sum()), size + float(wanted.square().sum())
    return pairs


def _together(found: Sequence[Projections]) -> Projections:
    return Projections(
        tuple(one for some in found for one in some.fitted),
        {edit: matrix for some in found for edit, matrix in some.matrices.items()},
        {edit: weights for some in found for edit, weights in some.weights.items()},
        tuple(dict.fromkeys(note for some in found for note in some.notes)),
    )


def _by_value(folds: Sequence[Fold]) -> list[list[Fold]]:
    """Transforms that read the same tensor share its projection."""
    found: dict[tuple[str, str, int, tuple[int, ...]], list[Fold]] = {}
    for edit in folds:
        found.setdefault((edit.value, edit.source, edit.num_in, edit.strides), []).append(edit)
    return list(found.values())


def _stages(side: _Side, batch: Batch, folds: Sequence[Fold]) -> list[list[Fold]]:
    """The projections in the order in which the pruned model comes to them."""
    order = list(side.see(batch, [edit.fqn for edit in folds]))
    return sorted(_by_value(folds), key=lambda some: order.index(some[0].fqn))


# ---- what transforms read ------------------------------------------------------------------------------------------


class _TooLarge(CalibrationError):
    """A fit takes more memory than allowed."""


class _Enough(BaseException):
    """All that was to be seen of a forward has been seen. No Exception, which a model's own forward might catch."""


@dataclass(frozen=True, eq=False)
class _Side:
    """One of two models, and what its modules were called before surgery."""

    model: nn.Module
    shade: Shadow
    names: Mapping[str, str] | None = None

    def see(self, batch: Batch, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Run until some transforms were called, and return what they got, in order.

        Raises:
            CalibrationError: the forward raises, or does not call them.
        """
        found: dict[str, Tensor] = {}
        try:
            with _asking(self.module_of, wanted, found), self.shade.running(), _no_fused_paths():
                inputs = self.shade.adapt(batch.inputs)
                self.model(*inputs.args, **inputs.kwargs)
        except _Enough:
            pass
        except Exception as error:  # the user's own forward
            raise CalibrationError(
                f"{type(self.model).__name__}.forward raised on a calibration batch ({batch.inputs!r}): {short(error)}"
            ) from error
        for name in wanted:
            if name not in found:
                raise CalibrationError(
                    f"a calibration batch ({batch.inputs!r}) does not come to '{name}', into which a projection is to "
                    "be folded: leave it out"
                )
        return found

    def module_of(self, name: str) -> nn.Module:
        return self.model.get_submodule(name if self.names is None else self.names[name])


@contextmanager
def _asking(module_of: Any, wanted: Sequence[str], found: dict[str, Tensor]) -> Generator[None]:
    """Copy what modules get, and stop the forward once all have got it."""

    def keep(name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(given, Tensor):
            found[name] = given.detach().clone()  # a later layer may write into it
        if len(found) == len(wanted):
            raise _Enough

    hooks = [module_of(name).register_forward_pre_hook(partial(keep, name), with_kwargs=True) for name in wanted]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _no_fused_paths() -> FunctionWatch:
    """Have torch's transformer layers call the modules inside them."""
    return FunctionWatch(lambda name, func, args, kwargs: func(*args, **kwargs))


# ---- one projection ------------------------------------------------------------------------------------------------


class _Fitter:
    """Fits the projection that some transforms, which read the same tensor, take in."""

    def __init__(self, original: Shadow, pruned: _Side, folds: Sequence[Fold], memory_bytes: int) -> None:
        self.original = _Side(original.model, original)
        self.pruned = pruned
        self.folds = folds
        self.memory_bytes = memory_bytes
        self.readers = [original.model.get_submodule(edit.fqn) for edit in folds]
        self.bias = all(takes_constant(reader) for reader in self.readers)

    def fit(self, batches: Sequence[Batch]) -> Projections:
        first = self.folds[0]
        projection, one = self.by_sums(batches) if self.sums_fit else self.by_rows(batches)
        weights = {e: folded(reader, projection) for e, reader in zip(self.folds, self.readers, strict=True)}
        notes: tuple[str, ...] = ()
        if one.strength is None:
            notes = (
                f"'{first.value}' is no linear function of '{first.source}' at all, by the data: it is taken as 0",
            )
        elif one.num_rows < one.num_inputs:
            notes = (
                f"the projection of '{first.source}' has {one.num_inputs:,} inputs and was fitted on {one.num_rows:,} "
                "tokens or places: give calibration data with more than that",
            )
        return Projections((one,), dict.fromkeys(self.folds, projection), weights, notes)

    @property
    def num_out(self) -> int:
        reader = self.readers[0]
        weight = reader._parameters["weight"]
        assert weight is not None
        return weight.shape[1]

    @property
    def sums_bytes(self) -> int:
        """The sums of two parts of the data, of both, the matrix that is solved, and its factor."""
        width = self.folds[0].num_in + 1
        return 5 * 8 * width * (width + self.num_out)

    @property
    def sums_fit(self) -> bool:
        return self.sums_bytes <= self.memory_bytes

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the transforms read in the pruned model, and in the original: ``(row, channel)`` each."""
        first = self.folds[0]
        wanted = self.original.see(batch, [first.fqn])[first.fqn]
        read = self.pruned.see(batch, [first.fqn])[first.fqn]
        if isinstance(self.readers[0], nn.Linear):
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
            raise CalibrationError(f"the calibration data make '{first.fqn}' read values that are not finite")
        return read, wanted

    def parts(self, batches: Sequence[Batch]) -> Generator[tuple[Tensor, Tensor, bool]]:
        """Rows in float64, and whether they are held out: the last quarter of the batches, or of the only one."""
        first = len(batches) - max(1, round(len(batches) * _SHARE_HELD_OUT))
        for number, batch in enumerate(batches):
            read, wanted = self.rows(batch)
            split = round(len(read) * (1 - _SHARE_HELD_OUT)) if len(batches) == 1 else len(read) * (number < first)
            for held_out, start, end in ((False, 0, split), (True, split, len(read))):
                step = max(1, _PIECE_BYTES // (8 * (read.shape[1] + wanted.shape[1])))
                for at in range(start, end, step):
                    piece = slice(at, min(at + step, end))
                    yield read[piece].to(exact(read)), wanted[piece].to(read.device, exact(read)), held_out

    def by_sums(self, batches: Sequence[Batch]) -> tuple[Projection, Fitted]:
        weight = self.readers[0]._parameters["weight"]
        assert weight is not None
        width = self.folds[0].num_in
        grams = [Gram(1, width, device=weight.device) for _ in range(2)]
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
        rows = Rows(bias=self.bias)
        for read, wanted, held_out in self.parts(batches):
            rows.add(read, wanted, held_out=held_out)
            need = 3 * rows.num_bytes + 4 * 8 * rows.num_rows**2
            if need > self.memory_bytes:
                raise _TooLarge(
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
        return Fitted(first.value, first.source, readers, left, strength, num_rows, first.num_in)
