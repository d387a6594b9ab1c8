"""The tensors that a removal changes, and by which values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from layerprune.graph import LayerGraph
from layerprune.proof import Removal


@dataclass(frozen=True)
class Perturbation:
    """A tensor, and what becomes of it.

    Attributes:
        moved: number of the tensor that changes: a replaced one, or the result of a merge.
        other: the tensor that replaces it, or the operand that the merge loses.
        lost: whether ``other`` is lost rather than put in.
        place: for an operand of a concat: (dimension, first channel) in the result.
    """

    moved: int
    other: int
    lost: bool = False
    place: tuple[int, int] | None = None

    def part(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """The part of a tensor like the moved one that the change, which is of such a shape, concerns."""
        if self.place is None:
            return tensor
        dim, start = self.place
        return tensor.narrow(dim, start, shape[dim])


def perturbations_of(graph: LayerGraph, removal: Removal) -> list[Perturbation]:
    """The tensors that a removal moves."""
    found = [Perturbation(y, s) for y, s in removal.cut.substitutes.items()]
    for merge, value in sorted(removal.cut.dropped):
        result = graph.layers[merge].outputs[0]
        found.append(Perturbation(result, value, lost=True, place=_place(graph, merge, result, value)))
    return found


def _place(graph: LayerGraph, merge: int, result: int, value: int) -> tuple[int, int] | None:
    """Where an operand lies in a concat's result; None for a sum's."""
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
    """Keeps each observed tensor for as long as another one is still to be compared with it.

    Args:
        graph: the layer graph.
        shifts: what is compared.
    """

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
        """What to call with each value's number and tensor in one run.

        Args:
            compare: called with a shift, the moved tensor and the other one as soon as both are there, both detached.
            keeps: whether it keeps them, or views of them. What a later layer writes into is copied for it then; else
                only what is still to be compared with another tensor.
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
    """The values into whose memory a later layer writes."""
    last: Mapping[int, int] = {storage: layer.index for layer in graph.layers for storage in layer.writes}
    return {v for v in values if last.get(graph.values[v].storage, -1) > graph.values[v].layer}
