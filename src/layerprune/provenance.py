"""Provenance: which plans a pruned model was made by, remembered beside the module and not in it."""

from __future__ import annotations

from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Plan = TypeVar("Plan")


class Provenance(Generic[Plan]):
    """Remembers the plans that were carried out on models, for as long as these live.

    A module's attributes, state dict and pickle stay as they are: nothing is written into it. A copy of it is another
    module, of which nothing is known.
    """

    def __init__(self) -> None:
        self._plans: WeakKeyDictionary[nn.Module, tuple[Plan, ...]] = WeakKeyDictionary()

    def of(self, model: nn.Module) -> tuple[Plan, ...]:
        """The plans that made a model, in the order in which they were carried out; none where that is not known."""
        return self._plans.get(model, ())

    def remember(self, model: nn.Module, plans: tuple[Plan, ...]) -> None:
        """Keep the plans that made a model."""
        self._plans[model] = plans
