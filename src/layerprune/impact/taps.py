"""Taps: gradients at the tensors that removals move, multiplied with what they move by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.calibration import Batch
from layerprune.graph import LayerGraph
from layerprune.impact.evidence import Scene
from layerprune.impact.shifts import Shift, Tensors, shifts_of
from layerprune.observe import Observer, See
from layerprune.shadow import gradient_shadow

#: Why an estimate may be missing, for notes.
UNSEEN = "a tensor in question is not seen in a run, or no gradient reaches it"

_HALF = {torch.float64: torch.float32, torch.float32: torch.bfloat16}  # the latter has the same range


@dataclass(frozen=True, eq=False)
class Moves:
    """How far removals move what a backward started from, ``(removal, backward × sample)`` each.

    Attributes:
        sums: the products of gradient and change, summed over the elements: the move to first order.
        squares: their squares, summed: what its square is on average where the elements' parts come with random signs.
    """

    sums: np.ndarray
    squares: np.ndarray


class Taps:
    """Runs a model forward and backward, and says how far each removal moves what the backward starts from.

    The parameters do not ask for gradients, but for those of the layers through which the inputs come in: the others
    get theirs along with the values, at less memory.

    Args:
        scene: the model and its removals.
    """

    def __init__(self, scene: Scene) -> None:
        self.shade = gradient_shadow(scene.model, written=scene.graph.written_params)
        self.shifts = [shifts_of(scene.graph, removal) for removal in scene.removals]
        self.tensors = Tensors(scene.graph, [shift for some in self.shifts for shift in some])
        self.recipes = _recipes(scene.graph, self.shade.model, self.tensors.wanted)
        operands = {operand for operand, _ in self.recipes.values()}
        self.observer = Observer(self.shade, scene.graph, self.tensors.wanted | operands)
        entering = _entering(scene.graph)
        for name, parameter in self.shade.model.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(name in entering)

    def run(
        self,
        batch: Batch,
        pull: Callable[[Any, Sequence[Any]], None],
        forward: Callable[[nn.Module], Any] | None = None,
        *,
        num_backwards: int = 1,
    ) -> Moves:
        """Run one batch.

        Args:
            batch: what to run on.
            pull: gets the output and the ends of the backward, and runs it.
            forward: calls the model, in place of its call on the batch's inputs.
            num_backwards: how many times ``pull`` runs it.

        Returns:
            What each removal moves; nan where no gradient came.
        """
        products = self._run(batch, pull, forward, num_backwards)
        if products.deaf and not all(p.requires_grad for p in self._floating()):
            for parameter in self._floating():  # a detached value: gradients have to start from anew behind it
                parameter.requires_grad_(True)
            products = self._run(batch, pull, forward, num_backwards)
        return products.of(self.shifts)

    def _run(
        self,
        batch: Batch,
        pull: Callable[[Any, Sequence[Any]], None],
        forward: Callable[[nn.Module], Any] | None,
        num_backwards: int,
    ) -> _Products:
        products = _Products(self.tensors, self.recipes, batch.num_samples, num_backwards)

        def begin() -> See:
            products.forget()
            return products.see

        def use(out: Any) -> None:
            pull(out, list(products.ends.values()))

        try:
            with torch.autograd.graph.saved_tensors_hooks(products.note_saved, lambda tensor: tensor):
                self.observer.run(batch.inputs, begin, use=use, forward=forward)
        finally:
            products.let_go()
        return products

    def _floating(self) -> list[nn.Parameter]:
        return [p for p in self.shade.model.parameters() if p.is_floating_point() or p.is_complex()]


class _Products:
    """One batch's products of gradients and changes, summed over each sample as the backward brings the gradients."""

    def __init__(self, tensors: Tensors, recipes: _Recipes, num_samples: int, num_backwards: int) -> None:
        self.num_samples = num_samples
        self.num_backwards = num_backwards
        self.tensors = tensors
        self.moved = tensors.moved
        self.ends: dict[int, Any] = {}
        self.kept: dict[int, list[_Kept]] = {}
        self.saved: set[int] = set()
        self.recipes = recipes
        self.sources = {operand for operand, _ in recipes.values()}
        self.operands: dict[int, Tensor] = {}
        self.num_gradients: dict[int, int] = {}
        self.found: dict[Shift, list[Tensor]] = {}  # (sums or squares, sample) of each backward
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.let_go()
        self.remember = self.tensors.seeing(self.keep)
        self.num_gradients.clear()
        self.found.clear()
        self.deaf = False

    def let_go(self) -> None:
        """Let go of the ends of a backward, which know the hooks, which know these: nothing would be freed."""
        self.ends.clear()
        self.kept.clear()
        self.saved.clear()
        self.operands.clear()

    def note_saved(self, tensor: Tensor) -> Tensor:
        """Remember which memory the backward keeps anyway."""
        self.saved.add(_memory(tensor))
        return tensor

    def see(self, value: int, tensor: Tensor) -> None:
        if value in self.recipes:  # by now the backward keeps what it was made of, or does not
            operand, _ = self.recipes[value]
            if operand in self.operands and _memory(self.operands[operand]) not in self.saved:
                del self.operands[operand]
        if value in self.sources:
            self.operands[value] = tensor.detach()
        if value not in self.tensors.wanted:
            return
        if value in self.moved:
            if tensor.requires_grad:
                self.ends[value] = torch.autograd.graph.get_gradient_edge(tensor)
                tensor.register_hook(functools.partial(self.multiply, value))
            else:
                self.deaf = True
        self.remember(value, tensor)

    def keep(self, shift: Shift, moved: Tensor, other: Tensor) -> None:
        """Keep a change until the gradient comes.

        What the backward keeps anyway costs nothing to keep, nor does what a normalization makes of that once more.
        Else it is the difference, in half of its precision: squares are right to a few thousandths.
        """
        if not shift.lost and moved.shape != other.shape:
            return
        out = self.free(shift.other, other)
        into = None if shift.lost else self.free(shift.moved, moved)
        if out is None or (into is None and not shift.lost):
            change = -other if shift.lost else other - moved
            kept = _Kept(shift, change.to(_HALF.get(change.dtype, change.dtype)))
        else:
            kept = _Kept(shift, None, out, into)
        self.kept.setdefault(shift.moved, []).append(kept)

    def free(self, value: int, tensor: Tensor) -> Callable[[], Tensor] | None:
        """How to come by a tensor in the backward without keeping it; None where there is no way."""
        if _memory(tensor) in self.saved:
            return lambda: tensor
        operand, module = self.recipes.get(value, (-1, None))
        if module is None or operand not in self.operands:
            return None
        source = self.operands[operand]
        return lambda: module.forward(source)  # looked up when it is called: while the model runs it is watched

    def multiply(self, value: int, gradient: Tensor) -> None:
        gradient = gradient.detach()
        for kept in self.kept.get(value, ()):
            with torch.no_grad():
                change = kept.change()
            part = kept.shift.part(gradient, change)
            part = part.to(torch.promote_types(part.dtype, torch.float32))  # small products are nothing in float16
            self.found.setdefault(kept.shift, []).append(self.by_sample(part * change))
        self.num_gradients[value] = self.num_gradients.get(value, 0) + 1
        if self.num_gradients[value] == self.num_backwards:
            self.kept.pop(value, None)

    def by_sample(self, product: Tensor) -> Tensor:
        """Sums and sums of squares, ``(2, sample)``; of a tensor without samples an even share for each."""
        num = self.num_samples
        rows = num if product.dim() and product.shape[0] % num == 0 else 1
        flat = product.real.reshape(rows, -1)
        both = torch.stack([flat.sum(1), torch.linalg.vector_norm(flat, dim=1).square()])
        return both if rows == num else both.expand(2, num) / both.new_tensor([[num**0.5], [num]])

    def of(self, shifts: Sequence[Sequence[Shift]]) -> Moves:
        """What each removal's shifts move together."""
        known = {shift: torch.cat(found, dim=1).cpu().double().numpy() for shift, found in self.found.items()}
        unknown = np.full((2, max((row.shape[1] for row in known.values()), default=self.num_samples)), np.nan)
        both = np.zeros((2, len(shifts), unknown.shape[1]))
        for number, some in enumerate(shifts):
            both[:, number] = np.sum([known.get(shift, unknown) for shift in some], axis=0)
        return Moves(both[0], both[1])


@dataclass(frozen=True, eq=False)
class _Kept:
    """A change that waits for its gradient: itself, or what comes in place of what goes out; of a loss the one lost."""

    shift: Shift
    difference: Tensor | None
    other: Callable[[], Tensor] | None = None
    moved: Callable[[], Tensor] | None = None

    def change(self) -> Tensor:
        if self.difference is not None or self.other is None:
            assert self.difference is not None
            return self.difference
        return -self.other() if self.moved is None else self.other() - self.moved()


_Recipes: TypeAlias = dict[int, tuple[int, nn.Module]]
"""Value → the value that a normalization makes it of, and this."""


def _recipes(graph: LayerGraph, model: nn.Module, values: Collection[int]) -> _Recipes:
    """Values that are cheaply made again of one that the backward keeps: what normalizations return."""
    found: _Recipes = {}
    for value in values:
        layer = graph.layers[graph.values[value].layer] if graph.values[value].layer >= 0 else None
        if layer is None or not layer.is_module or layer.kind != "normalization" or layer.outputs != (value,):
            continue
        module = model.get_submodule(layer.fqn)
        reads = [read for read in layer.operands if read]
        if len(reads) == 1 and len(reads[0]) == 1 and not (module._forward_hooks or module._forward_pre_hooks):
            found[value] = reads[0][0], module
    return found


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _entering(graph: LayerGraph) -> frozenset[str]:
    """The parameters of the layers that read no value which already depends on one."""
    found: set[str] = set()
    dependent: set[int] = set()
    for layer in graph.layers:
        if not any(value in dependent for read in layer.operands for value in read):
            if not layer.params:
                continue
            found |= set(layer.params)
        dependent |= {v for v in layer.outputs if graph.values[v].dtype.is_floating_point}
    return frozenset(found)
