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
    """Keeps each observed tensor for as long as a later one is still to be compared with it.

    Args:
        graph: the layer graph.
        shifts: what is compared.
        compare: called with a shift, the moved tensor and the other one as soon as both are there.
    """

    def __init__(
        self, graph: LayerGraph, shifts: Sequence[Shift], compare: Callable[[Shift, Tensor, Tensor], None]
    ) -> None:
        self.compare = compare
        self.by_moved: dict[int, list[Shift]] = {}
        self.uses: dict[int, int] = {}
        for shift in dict.fromkeys(shifts):
            self.by_moved.setdefault(shift.moved, []).append(shift)
            self.uses[shift.other] = self.uses.get(shift.other, 0) + 1
        self.wanted = set(self.by_moved) | set(self.uses)
        self.written = _written_later(graph, self.wanted)
        self.kept: dict[int, Tensor] = {}

    def see(self, value: int, tensor: Tensor) -> None:
        """Compare a tensor with those that replace it, and keep it for those that it replaces."""
        for shift in self.by_moved.get(value, ()):
            other = self.kept.get(shift.other)
            if other is not None:
                self.compare(shift, tensor, other)
            self.uses[shift.other] -= 1
            if not self.uses[shift.other]:
                self.kept.pop(shift.other, None)
        if self.uses.get(value):
            self.kept[value] = tensor.detach().clone() if value in self.written else tensor.detach()


def _written_later(graph: LayerGraph, values: set[int]) -> set[int]:
    """The values into whose memory a later layer writes."""
    last: Mapping[int, int] = {storage: layer.index for layer in graph.layers for storage in layer.writes}
    return {v for v in values if last.get(graph.values[v].storage, -1) > graph.values[v].layer}
