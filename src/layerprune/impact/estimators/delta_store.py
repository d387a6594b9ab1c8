"""Keeps the perturbations of removals until the backward pass computes the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from layerprune.graph import LayerGraph
from layerprune.impact.estimators.perturbations import Perturbation, Tensors, written_later
from layerprune.tensors import traits_of
from layerprune.torch_internals import has_hooks, storage_id

_HALF = {torch.float64: torch.float32, torch.float32: torch.bfloat16}  # bfloat16 has the range of float32

_SUMS = frozenset({"add", "iadd"})

_Get: TypeAlias = Callable[[], Tensor]
"""Returns a tensor when the backward needs it."""


class DeltaStore:
    """Keeps perturbations in little memory.

    A tensor that autograd saves for the backward needs no further memory. A normalization or a sum of saved tensors is
    cheap to compute again. Autograd has saved a tensor or not when its last reader has run; until then the tensor is in
    memory anyway. Other perturbations are kept as differences in half as many bits; squares err by a few thousandths.

    Args:
        graph: the layer graph.
        model: the model that runs; its normalizations compute tensors again.
        tensors: the values to compare.

    Attributes:
        watched: values whose tensors :meth:`see` needs.
    """

    def __init__(self, graph: LayerGraph, model: nn.Module, tensors: Tensors) -> None:
        self._graph = graph
        self._model = model
        self._tensors = tensors
        self._recipes = _recipes(graph, model, tensors.wanted)
        self.watched = tensors.wanted | {operand for recipe in self._recipes.values() for operand in recipe.operands}
        self._written = written_later(graph, self.watched)
        self._done = {value: max(graph.readers.get(value, (-1,))) for value in self.watched}
        self.forget()

    def forget(self) -> None:
        self._saved: set[int] = set()
        self._held: dict[int, Tensor] = {}
        self._unsettled: set[int] = set()
        self._waiting: list[tuple[Perturbation, Tensor, Tensor]] = []
        self._kept: dict[int, list[tuple[Perturbation, _Get]]] = {}
        self._see = self._tensors.seeing(self._compare)
        self._known = self._recipes

    def begin(self, graph: LayerGraph, numbers: Mapping[int, int]) -> None:
        """Begin a run.

        Args:
            graph: layer graph of this run.
            numbers: value → its number in ``graph``. A value that another layer makes there has no recipe in this run.
        """
        self.forget()
        if graph is not self._graph:
            self._known = {
                value: recipe
                for value, recipe in self._recipes.items()
                if value in numbers and _recipe(graph, self._model, numbers[value]) == recipe.renumbered(numbers)
            }

    def note_saved(self, tensor: Tensor) -> Tensor:
        """Remember memory that autograd saves for the backward."""
        self._saved.add(storage_id(tensor))
        return tensor

    def see(self, value: int, tensor: Tensor) -> None:
        """Take a value's tensor during the forward."""
        if value not in self._written:
            self._held[value] = tensor.detach()
            self._unsettled.add(value)
        if value in self._tensors.wanted:
            self._see(value, tensor)
        self._settle(self._graph.values[value].layer)

    def end(self) -> None:
        """Settle all pending perturbations at the end of the forward, and release tensors that are not needed."""
        self._settle(len(self._graph.layers))
        self._held.clear()

    def of(self, value: int) -> Iterator[tuple[Perturbation, Tensor]]:
        for shift, change in self._kept.get(value, ()):
            yield shift, change()

    def drop(self, value: int) -> None:
        self._kept.pop(value, None)

    def _compare(self, shift: Perturbation, moved: Tensor, other: Tensor) -> None:
        if shift.lost or moved.shape == other.shape:
            self._waiting.append((shift, moved, other))

    def _settle(self, executed: int) -> None:
        """Decide how to keep perturbations whose tensors have no reader after layer ``executed``."""
        waiting, self._waiting = self._waiting, []
        for shift, moved, other in waiting:
            change = self._free(shift, moved, other)
            if change is None and max(self._done[shift.moved], self._done[shift.other]) > executed:
                self._waiting.append((shift, moved, other))
                continue
            self._kept.setdefault(shift.moved, []).append((shift, change or _difference(shift, moved, other)))
        for value in [value for value in self._unsettled if self._done[value] <= executed]:
            self._unsettled.remove(value)
            if storage_id(self._held[value]) not in self._saved:
                del self._held[value]

    def _free(self, shift: Perturbation, moved: Tensor, other: Tensor) -> _Get | None:
        """A perturbation from saved tensors; None if there are none, or none yet."""
        before, after = self._get(shift.moved, moved), self._get(shift.other, other)
        if shift.lost and after is not None:
            return lambda: -after()
        if shift.lost and shift.place is not None and before is not None:  # the operand lies in the concat's result
            shape = other.shape
            return lambda: -shift.part(before(), shape)
        if shift.lost or before is None or after is None:
            return None
        return lambda: after() - before()

    def _get(self, value: int, tensor: Tensor | None) -> _Get | None:
        if tensor is not None and storage_id(tensor) in self._saved:
            return lambda: tensor
        recipe = self._known.get(value)
        if recipe is None:
            return None
        found = [self._get(operand, self._held.get(operand)) for operand in recipe.operands]
        sources = [get for get in found if get is not None]
        return (lambda: recipe.made(self._model, [get() for get in sources])) if len(sources) == len(found) else None


@dataclass(frozen=True)
class _Recipe:
    """How to compute a value again: a normalization of one value, or the sum of two."""

    normalization: str | None
    operands: tuple[int, ...]

    def made(self, model: nn.Module, tensors: list[Tensor]) -> Tensor:
        if self.normalization is None:
            return tensors[0] + tensors[1]
        return model.get_submodule(self.normalization).forward(*tensors)

    def renumbered(self, numbers: Mapping[int, int]) -> _Recipe:
        return _Recipe(self.normalization, tuple(numbers.get(operand, -1) for operand in self.operands))


def _recipes(graph: LayerGraph, model: nn.Module, values: Iterable[int]) -> dict[int, _Recipe]:
    """Recipes of values, and of the operands of these recipes."""
    found: dict[int, _Recipe] = {}
    pending = list(values)
    while pending:
        value = pending.pop()
        recipe = None if value in found else _recipe(graph, model, value)
        if recipe is not None:
            found[value] = recipe
            pending += recipe.operands
    return found


def _recipe(graph: LayerGraph, model: nn.Module, value: int) -> _Recipe | None:
    """The recipe of a value, if it is cheap."""
    layer = graph.layers[graph.values[value].layer] if graph.values[value].layer >= 0 else None
    if layer is None or layer.outputs != (value,):
        return None
    reads = [read for read in layer.operands if read]
    operands = tuple(read[0] for read in reads if len(read) == 1)
    if len(operands) < len(reads):
        return None
    if traits_of(layer.function or "").is_sum and layer.literals == ((None, None), {}) and len(operands) == 2:
        return _Recipe(None, operands)
    if layer.is_module and layer.kind == "normalization" and len(operands) == 1:
        module = model.get_submodule(layer.fqn)
        is_plain = graph.frames[layer.frame].arity == 1 and not has_hooks(module)
        return _Recipe(layer.fqn, operands) if is_plain else None
    return None


def _difference(shift: Perturbation, moved: Tensor, other: Tensor) -> _Get:
    change = -other if shift.lost else other - moved
    kept = change.to(_HALF.get(change.dtype, change.dtype))
    return lambda: kept
