"""Trials: forwards of a shadow, each from the state that the user's model is in, described by what they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

from layerprune.inputs import Inputs
from layerprune.nested import tensors_in
from layerprune.outputs import signature
from layerprune.shadow import Shadow


@dataclass(frozen=True)
class Trial:
    """One forward that an edited shadow must pass.

    Attributes:
        training: whether it is in train mode.
        inputs: its arguments.
        expected: what the untouched shadow returned.
        backward: whether a backward has to run as well.
    """

    training: bool
    inputs: Inputs
    expected: Any
    backward: bool = False


class Trials:
    """Runs the forwards of one shadow.

    Args:
        shade: the shadow.
    """

    def __init__(self, shade: Shadow) -> None:
        self.shade = shade

    def make(self, training: bool, inputs: Inputs) -> Trial:
        """Run the untouched shadow; what it returns is expected of the edited ones."""
        expected = self.run(training, self.shade.adapt(inputs))
        backward = training and self.has_own_backward(self.shade.adapt(inputs))
        return Trial(training, self.shade.adapt(inputs), expected, backward)

    def run(self, training: bool, inputs: Inputs, *, backward: bool = False) -> Any:
        """Run the shadow and describe what it returns."""
        self.shade.model.train(training)
        try:
            with self.shade.running(grad=backward):
                out = self.shade.model(*inputs.args, **inputs.kwargs)
                if backward:
                    _backward(out)
                return signature(out)
        finally:
            self.shade.model.eval()
            if backward:
                self.shade.model.zero_grad(set_to_none=True)

    def has_own_backward(self, inputs: Inputs) -> bool:
        """Whether the model brings a backward in Python (a reversible layer's), which may read what surgery takes."""
        if self.shade.mode is None:  # on real tensors it would cost what a step of training costs
            return False
        self.shade.model.train()
        try:
            with self.shade.running(grad=True):
                out = self.shade.model(*inputs.args, **inputs.kwargs)
                if not any(isinstance(node, BackwardCFunction) for node in _nodes(out)):
                    return False
                _backward(out)
        except Exception:  # the model's own, which then cannot be trained on these inputs; nothing is asked of it
            return False
        finally:
            self.shade.model.eval()
            self.shade.model.zero_grad(set_to_none=True)
        return True


def _backward(out: Any) -> None:
    ends = [t for t in tensors_in(out) if t.requires_grad]
    torch.autograd.backward(ends, [torch.ones_like(t) for t in ends])


def _nodes(out: Any) -> list[Any]:
    """Every node of the graph that autograd built."""
    stack: list[Any] = [t.grad_fn for t in tensors_in(out) if t.grad_fn is not None]
    seen: dict[int, Any] = {}
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            stack += [following for following, _ in node.next_functions if following is not None]
    return list(seen.values())
