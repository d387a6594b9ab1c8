"""Perturbations: the tensors that a removal changes, and their new values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from layerprune.graph import LayerGraph
from layerprune.proof import Removal


@dataclass(frozen=True)
class Perturbation:
    """The change of one tensor.

    Attributes:
        moved: value that changes: a replaced value, or the result of a merge.
        other: the substitute, or the operand that the merge loses.
        lost: whether the merge loses ``other``.
        place: (dimension, first channel) of a concat's operand in the result.
    """

    moved: int
    other: int
    lost: bool = False
    place: tuple[int, int] | None = None

    def part(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """The part of a tensor, shaped as the moved tensor, that an operand of this shape fills."""
        if self.place is None:
            return tensor
        dim, start = self.place
        return tensor.narrow(dim, start, shape[dim])


def perturbations_of(graph: LayerGraph, removal: Removal) -> list[Perturbation]:
    """The perturbations of a removal."""
    found = [Perturbation(y, s) for y, s in removal.cut.substitutes.items()]
    for merge, value in sorted(removal.cut.dropped):
        result = graph.layers[merge].outputs[0]
        found.append(Perturbation(result, value, lost=True, place=_place(graph, merge, result, value)))
    return found


def _place(graph: LayerGraph, merge: int, result: int, value: int) -> tuple[int, int] | None:
    """Position of an operand in a concat's result; None for a sum."""
    whole, own = graph.values[result].shape, graph.values[value].shape
    differ = [dim for dim, (a, b) in enumerate(zip(whole, own, strict=False)) if a != b]
    if len(whole) != len(own) or len(differ) != 1:
        return None
    before = 0
    for read in graph.layers[merge].operands:
        if value in read:
            return differ[0], before
        before += graph.values[read[0]].shape[differ[0]]
    return None


class Tensors:
    """Keeps each observed tensor until all of its comparisons are done."""

    def __init__(self, graph: LayerGraph, shifts: Sequence[Perturbation]) -> None:
        self.shifts = tuple(dict.fromkeys(shifts))
        self.moved = frozenset(shift.moved for shift in self.shifts)
        self.wanted = self.moved | {shift.other for shift in self.shifts}
        self.written = written_later(graph, self.wanted)
        self.partners: dict[int, list[int]] = {}
        for number, shift in enumerate(self.shifts):
            for value in {shift.moved, shift.other}:
                self.partners.setdefault(value, []).append(number)

    def seeing(
        self, compare: Callable[[Perturbation, Tensor, Tensor], None], *, keeps: bool = True
    ) -> Callable[[int, Tensor], None]:
        """A callback for one run, which takes each value's number and tensor.

        It calls ``compare`` with a perturbation, the moved and the other tensor, detached, as soon as both exist. With
        ``keeps``, each tensor that a later layer writes into is copied, because ``compare`` keeps it or views of it.
        Otherwise a copy is made only for further comparisons.
        """
        pending = {value: set(numbers) for value, numbers in self.partners.items()}
        kept: dict[int, Tensor] = {}

        def see(value: int, tensor: Tensor) -> None:
            is_written = value in self.written
            kept[value] = tensor.detach().clone() if is_written and keeps else tensor.detach()
            for number in self.partners[value]:
                shift = self.shifts[number]
                if shift.moved in kept and shift.other in kept:
                    compare(shift, kept[shift.moved], kept[shift.other])
                    for end in (shift.moved, shift.other):
                        pending[end].discard(number)
            for known in [known for known in kept if not pending[known]]:
                del kept[known]
            if is_written and not keeps and value in kept:
                kept[value] = kept[value].clone()

        return see


def written_later(graph: LayerGraph, values: Collection[int]) -> set[int]:
    """Values whose memory a later layer writes into."""
    last: Mapping[int, int] = {storage: layer.index for layer in graph.layers for storage in layer.writes}
    return {v for v in values if last.get(graph.values[v].storage, -1) > graph.values[v].layer}
