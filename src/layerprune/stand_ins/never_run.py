"""The stand-in of a module that no forward called."""

from __future__ import annotations

from typing import Any

from torch import nn

from layerprune.errors import DroppedTensorError


class NeverRun(nn.Module):
    """Stand-in of a removed module that no forward had called; a call raises an error.

    Args:
        fqn: the module's dotted name, for the error.
    """

    def __init__(self, fqn: str) -> None:
        super().__init__()
        self.fqn = fqn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise an error, because the removed module's output is unknown."""
        raise DroppedTensorError(
            f"layerprune took '{self.fqn}' out because neither eval nor train mode ran it on the example inputs, and "
            "now it is called: plan without unused=True, or with example_inputs that reach it"
        )

    def extra_repr(self) -> str:
        return f"'{self.fqn}' never ran"
