"""Runs of the sandbox, each from the state of the user's model, described by their outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from layerprune.capture import Sandbox
from layerprune.inputs import Inputs
from layerprune.proof.output_form import signature
from layerprune.tensors import tensors_in


@dataclass(frozen=True)
class ProofRun:
    """One forward that an edited sandbox must pass.

    Attributes:
        training: whether it runs in train mode.
        inputs: its arguments; each run gets new tensors of this form.
        expected: form of the untouched sandbox's output.
        backward: whether a backward must run as well.
    """

    training: bool
    inputs: Inputs
    expected: Any
    backward: bool = False


class ProofRuns:
    """Runs the forwards of one sandbox."""

    def __init__(self, shade: Sandbox) -> None:
        self.shade = shade

    def make(self, training: bool, inputs: Inputs) -> ProofRun:
        """Run the untouched sandbox; its output is expected of the edited ones.

        A Python backward (as of reversible layers) may read what surgery removes: if it runs now, it must run after
        surgery. It may need gradients of the inputs, which come from a larger model's stem. On real tensors a backward
        costs a training step, so none is run.
        """
        adapted = self.shade.adapt(inputs)
        if not training or self.shade.mode is None:
            return ProofRun(training, adapted, self.run(training, self.shade.adapt(inputs)))
        backward = False

        def look(out: Any) -> None:
            nonlocal backward
            if any(isinstance(node, BackwardCFunction) for node in _nodes(out)):
                try:
                    _backward(out)
                    backward = True
                except Exception:  # the model's own backward: not trainable on these inputs
                    backward = False

        try:
            expected = self.run(True, self.shade.adapt(inputs), look=look)
        except Exception:  # a forward that reads values of its inputs may not take tensors with a history
            return ProofRun(True, adapted, self.run(True, self.shade.adapt(inputs)))
        return ProofRun(True, adapted, expected, backward)

    def run(self, training: bool, inputs: Inputs, *, look: Callable[[Any], None] | None = None) -> Any:
        """Run the sandbox and describe its output; ``look`` gets the output, with a history back to the inputs."""
        self.shade.model.train(training)
        try:
            with self.shade.running(grad=look is not None):
                given = inputs if look is None else inputs.map(_with_history)
                out = self.shade.model(*given.args, **given.kwargs)
                if look is not None:
                    look(out)
                return signature(out)
        finally:
            self.shade.model.eval()
            if look is not None:
                self.shade.model.zero_grad(set_to_none=True)

    def repeat(self, trial: ProofRun) -> Any:
        """Repeat a run on the edited sandbox and describe its output."""
        inputs = self.shade.renew(trial.inputs)
        return self.run(trial.training, inputs, look=_backward if trial.backward else None)


def _with_history(tensor: Tensor) -> Tensor:
    """A tensor that requires a gradient, but is no leaf and may be written into."""
    return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor


def _backward(out: Any) -> None:
    ends = [t for t in tensors_in(out) if t.requires_grad]
    torch.autograd.backward(ends, [torch.ones_like(t) for t in ends])


def _nodes(out: Any) -> list[Any]:
    stack: list[Any] = [t.grad_fn for t in tensors_in(out) if t.grad_fn is not None]
    seen: dict[int, Any] = {}
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            stack += [following for following, _ in node.next_functions if following is not None]
    return list(seen.values())
