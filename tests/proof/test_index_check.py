"""The index check compares each rearrangement of channels with the recorded one, at the call where it was recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from layerprune.modules import CallKey
from layerprune.proof.index_check import index_checked


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.flip(x, (1,))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flip = Flip()

    def forward(self, x: Tensor) -> Tensor:
        return torch.flip(self.flip(x), (2,))


@dataclass
class Rearrangement:
    """Stands for a recorded rearrangement: keeps what the run makes of a numbered tensor."""

    key: CallKey
    made: list[Tensor] = field(default_factory=list)

    @property
    def layer(self) -> Any:
        return SimpleNamespace(key=self.key, name=f"{self.key.fqn}.{self.key.function}")

    def fault(self, run: Callable[[Tensor], Any]) -> None:
        self.made.append(run(torch.arange(4.0).reshape(1, 2, 2)))


def test_a_module_that_is_repeated_does_not_count_for_the_functions_of_its_caller() -> None:
    module, function = Rearrangement(CallKey("flip")), Rearrangement(CallKey("", 0, "flip", 0))
    model: Any = Net()
    with index_checked(model, [module, function]) as faults:  # type: ignore[list-item]
        model(torch.zeros(1, 2, 2))
    assert faults == []
    assert [made.flatten().tolist() for made in module.made] == [[2, 3, 0, 1]]
    assert [made.flatten().tolist() for made in function.made] == [[1, 0, 3, 2]]


def test_a_rearrangement_that_does_not_run_is_a_fault() -> None:
    model: Any = Net()
    with index_checked(model, [Rearrangement(CallKey("", 0, "flip", 1))]) as faults:  # type: ignore[list-item]
        model(torch.zeros(1, 2, 2))
    assert [str(fault) for fault in faults] == ["'.flip' does not run as it was recorded"]
