"""Gradients at the perturbed tensors, multiplied with the perturbations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.capture import Batch, Probe, See, gradient_sandbox
from layerprune.graph import LayerGraph
from layerprune.impact.estimators.delta_store import DeltaStore
from layerprune.impact.estimators.perturbations import Perturbation, Tensors, perturbations_of
from layerprune.impact.scores import ScoringContext
from layerprune.modules import named_parameters, parameters

#: Why an estimate may be missing, for notes.
UNSEEN = "a tensor in question is not seen in a run, or no gradient reaches it"


@dataclass(frozen=True, eq=False)
class TensorChanges:
    """Change of the scalar that the backward starts from, to first order, ``(removal, backward × sample)`` each.

    Attributes:
        sums: products of gradient and perturbation, summed over the elements: the change to first order.
        squares: the squared products, summed: the expected square of the change if the products have random signs.
    """

    sums: np.ndarray
    squares: np.ndarray


class GradientTaps:
    """Runs a model forward and backward, and measures how far each removal changes the start of the backward.

    Only parameters of the layers that read the inputs require gradients. This makes all later tensors require
    gradients and needs less memory than gradients of all parameters.
    """

    def __init__(self, scene: ScoringContext) -> None:
        self.shade = gradient_sandbox(scene.model, written=scene.graph.written_params)
        self.shifts = [perturbations_of(scene.graph, removal) for removal in scene.removals]
        self.tensors = Tensors(scene.graph, [shift for some in self.shifts for shift in some])
        self.changes = DeltaStore(scene.graph, self.shade.model, self.tensors)
        self.observer = Probe(self.shade, scene.graph, self.changes.watched, scene.variants)
        entering = _entering(scene.graph)
        for name, parameter in named_parameters(self.shade.model, every_name=True):
            parameter.requires_grad_(name in entering)

    def run(
        self,
        batch: Batch,
        pull: Callable[[Any, Sequence[Any]], None],
        forward: Callable[[nn.Module], Any] | None = None,
        *,
        num_backwards: int = 1,
    ) -> TensorChanges:
        """Run one batch; returns the change of each removal, or nan if no gradient reached its tensors.

        Args:
            batch: the inputs.
            pull: takes the output and the gradient edges, and runs ``num_backwards`` backwards.
            forward: calls the model, in place of a call with the batch's inputs.
            num_backwards: number of backwards.
        """
        products = self._run(batch, pull, forward, num_backwards)
        if products.deaf and not all(p.requires_grad for p in self._floating()):
            for parameter in self._floating():  # a detached value: layers behind it need gradients of their own
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
        products = _Products(self.tensors.moved, self.changes, batch.num_samples, num_backwards)

        def begin() -> See:
            products.forget()
            self.changes.begin(*self.observer.under_way)
            return products.see

        def use(out: Any) -> None:
            self.changes.end()
            pull(out, list(products.ends.values()))

        try:
            with torch.autograd.graph.saved_tensors_hooks(self.changes.note_saved, lambda tensor: tensor):
                self.observer.run(batch.inputs, begin, use=use, forward=forward)
        finally:
            products.let_go()
        return products

    def _floating(self) -> list[nn.Parameter]:
        return [p for p in parameters(self.shade.model) if p.is_floating_point() or p.is_complex()]


class _Products:
    """Products of gradients and perturbations on one batch, summed over each sample during the backward."""

    def __init__(self, moved: frozenset[int], changes: DeltaStore, num_samples: int, num_backwards: int) -> None:
        self.moved = moved
        self.changes = changes
        self.num_samples = num_samples
        self.num_backwards = num_backwards
        self.ends: dict[int, Any] = {}
        self.num_gradients: dict[int, int] = {}
        self.found: dict[Perturbation, list[Tensor]] = {}  # (sums or squares, sample) of each backward
        self.forget()

    def forget(self) -> None:
        self.let_go()
        self.num_gradients.clear()
        self.found.clear()
        self.deaf = False

    def let_go(self) -> None:
        """Release the gradient edges: they form a reference cycle through the hooks, which would keep the memory."""
        self.ends.clear()
        self.changes.forget()

    def see(self, value: int, tensor: Tensor) -> None:
        if value in self.moved:
            if tensor.requires_grad:
                self.ends[value] = torch.autograd.graph.get_gradient_edge(tensor)
                tensor.register_hook(functools.partial(self.multiply, value))
            else:
                self.deaf = True
        self.changes.see(value, tensor)

    def multiply(self, value: int, gradient: Tensor) -> None:
        gradient = gradient.detach()
        with torch.no_grad():
            for shift, change in self.changes.of(value):
                part = shift.part(gradient, change.shape)
                part = part.to(torch.promote_types(part.dtype, torch.float32))  # small products underflow in float16
                self.found.setdefault(shift, []).append(self.by_sample(part * change))
        self.num_gradients[value] = self.num_gradients.get(value, 0) + 1
        if self.num_gradients[value] == self.num_backwards:
            self.changes.drop(value)

    def by_sample(self, product: Tensor) -> Tensor:
        """Sums and sums of squares, ``(2, sample)``; of a tensor without a batch dimension an even share per sample."""
        num = self.num_samples
        rows = num if product.dim() and product.shape[0] % num == 0 else 1
        flat = product.real.reshape(rows, -1)
        both = torch.stack([flat.sum(1), torch.linalg.vector_norm(flat, dim=1).square()])
        return both if rows == num else both.expand(2, num) / both.new_tensor([[num**0.5], [num]])

    def of(self, shifts: Sequence[Sequence[Perturbation]]) -> TensorChanges:
        """Total change of each removal's perturbations."""
        known = {shift: torch.cat(found, dim=1).cpu().double().numpy() for shift, found in self.found.items()}
        unknown = np.full((2, max((row.shape[1] for row in known.values()), default=self.num_samples)), np.nan)
        both = np.zeros((2, len(shifts), unknown.shape[1]))
        for number, some in enumerate(shifts):
            both[:, number] = np.sum([known.get(shift, unknown) for shift in some], axis=0)
        return TensorChanges(both[0], both[1])


def _entering(graph: LayerGraph) -> frozenset[str]:
    """The parameters of layers whose operands depend on no other parameter."""
    found: set[str] = set()
    dependent: set[int] = set()
    for layer in graph.layers:
        if not any(value in dependent for read in layer.operands for value in read):
            if not layer.params:
                continue
            found |= set(layer.params)
        dependent |= {v for v in layer.outputs if graph.values[v].dtype.is_floating_point}
    return frozenset(found)
