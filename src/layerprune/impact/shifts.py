"""Shifts: the tensors that a removal moves, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from layerprune.graph import LayerGraph
from layerprune.proof import Removal


@dataclass(frozen=True)
class Shift:
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

    def change(self, moved: Tensor, other: Tensor) -> Tensor | None:
        """What the tensor changes by, of its own shape or, for a lost operand of a concat, of the operand's."""
        if self.lost:
            return -other
        return other - moved if moved.shape == other.shape else None

    def part(self, tensor: Tensor, size: Tensor) -> Tensor:
        """The part of a tensor like the moved one that the change concerns."""
        if self.place is None:
            return tensor
        dim, start = self.place
        return tensor.narrow(dim, start, size.shape[dim])


def shifts_of(graph: LayerGraph, removal: Removal) -> list[Shift]:
    """The tensors that a removal moves."""
    found = [Shift(y, s) for y, s in removal.cut.substitutes.items()]
    for merge, value in sorted(removal.cut.dropped):
        result = graph.layers[merge].outputs[0]
        found.append(Shift(result, value, lost=True, place=_place(graph, merge, result, value)))
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
        compare: called with a shift, the moved tensor and the other one as soon as both are there, both detached; it
            may keep them, as no later layer writes into them.
    """

    def __init__(
        self, graph: LayerGraph, shifts: Sequence[Shift], compare: Callable[[Shift, Tensor, Tensor], None]
    ) -> None:
        self.compare = compare
        self.moved = {shift.moved for shift in shifts}
        self.pending: dict[int, list[Shift]] = {}
        for shift in dict.fromkeys(shifts):
            self.pending.setdefault(shift.moved, []).append(shift)
            self.pending.setdefault(shift.other, []).append(shift)
        self.wanted = set(self.pending)
        self.written = _written_later(graph, self.wanted)
        self.kept: dict[int, Tensor] = {}

    def see(self, value: int, tensor: Tensor) -> None:
        """Compare a tensor with those that came before it, and keep it for those that are still to come."""
        self.kept[value] = tensor.detach().clone() if value in self.written else tensor.detach()
        for shift in [s for s in self.pending[value] if s.moved in self.kept and s.other in self.kept]:
            self.compare(shift, self.kept[shift.moved], self.kept[shift.other])
            for end in {shift.moved, shift.other}:
                self.pending[end].remove(shift)
        for known in [known for known in self.kept if not self.pending[known]]:
            del self.kept[known]


def _written_later(graph: LayerGraph, values: set[int]) -> set[int]:
    """The values into whose memory a later layer writes."""
    last: Mapping[int, int] = {storage: layer.index for layer in graph.layers for storage in layer.writes}
    return {v for v in values if last.get(graph.values[v].storage, -1) > graph.values[v].layer}
