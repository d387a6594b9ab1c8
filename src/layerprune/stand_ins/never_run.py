"""The stand-in of a module that no forward has run."""

from __future__ import annotations

from typing import Any

from torch import nn

from layerprune.errors import DroppedTensorError


class NeverRun(nn.Module):
    """Stands where a module was that no forward had run when it was removed.

    Args:
        fqn: the module's dotted name, for the error of whoever calls it all the same.
    """

    def __init__(self, fqn: str) -> None:
        super().__init__()
        self.fqn = fqn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise: what would be returned is not known."""
        raise DroppedTensorError(
            f"layerprune took '{self.fqn}' out because neither eval nor train mode ran it on the example inputs, and "
            "now it is called: plan without unused=True, or with example_inputs that reach it"
        )

    def extra_repr(self) -> str:
        return f"'{self.fqn}' never ran"
