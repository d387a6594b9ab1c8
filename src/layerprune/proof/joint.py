"""Carries out and proves several removals as one set."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from layerprune.cost import params_taken
from layerprune.edits import folds_of
from layerprune.graph import Refusal, RefusalCode
from layerprune.modules import clone
from layerprune.proof.prover import Prover, Removal
from layerprune.removals import Lowering, join_cuts, key_of
from layerprune.surgery import Folded, operate


class JointRemovals:
    """Realises sets of removals and proves them; what held is remembered.

    Args:
        prover: of the model.
        removals: what sets are made of, by number.
        model: the user's model; it stays as it is.
    """

    def __init__(self, prover: Prover, removals: Sequence[Removal], model: nn.Module) -> None:
        self.prover = prover
        self.removals = removals
        self.model = model
        self._known: dict[tuple[int, ...], Lowering] = {}

    def proven(self, chosen: Sequence[int]) -> Lowering:
        """Realise removals together and prove the whole.

        Raises:
            Refusal: they do not hold together; the message says why.
        """
        key = tuple(chosen)
        if key in self._known:
            return self._known[key]
        joint = self.lower_removal(chosen)
        reason = self.prover.reason_against([joint])
        if reason is not None and joint.stand_ins and not self.prover.shortener.must(joint):
            joint = self.lower_removal(chosen, shorten=False)
            reason = self.prover.reason_against([joint])
        if reason is not None:
            raise reason
        self._known[key] = joint
        return joint

    def lower_removal(self, chosen: Sequence[int], *, shorten: bool = True) -> Lowering:
        """The part of it that runs nothing.

        Raises:
            Refusal: they do not go together.
        """
        picked = [self.removals[i] for i in chosen]
        cut = join_cuts([(r.cut, r.dead) for r in picked], self.prover.graph)
        able = not any(key_of(r.cut) in self.prover.unshortened for r in picked)  # what failed alone fails together
        joint = self.prover.lower_removal(cut, shorten=shorten and able)
        if not all(r.dead <= joint.dead for r in picked):
            raise Refusal(RefusalCode.ONE_NEEDS_ANOTHER)
        return joint

    def likely(self, chosen: Sequence[int]) -> Lowering:
        """As it is proven, where that is known; else as it would be proven first.

        Raises:
            Refusal: they do not go together.
        """
        return self._known.get(tuple(chosen)) or self.lower_removal(chosen)

    def num_params(self, chosen: Sequence[int]) -> int:
        """How many parameters a set that holds together takes; shared ones once."""
        if not chosen:
            return 0
        return params_taken(self.prover.graph, self.prover.modules, self.proven(chosen)).size(self.prover.graph)

    def why_no_smaller(self, chosen: Sequence[int]) -> Refusal | None:
        """Say why a set that holds together leaves a model that is no smaller; None where it is smaller.

        What takes a projection in may grow by more than leaves once the removals before it have moved its source.
        """
        joint = self.proven(chosen)
        if not folds_of(joint.edits):
            return None
        taken = params_taken(self.prover.graph, self.prover.modules, joint)
        size, growth = taken.size(self.prover.graph), int(sum(taken.growth.values()))
        if size > 0:
            return None
        return Refusal(RefusalCode.NO_SMALLER, saved=size + growth, growth=growth)

    def without(self, chosen: Sequence[int], folded: Folded | None = None) -> nn.Module:
        """A copy of the model without a set that holds together; it shares the tensors that stay.

        Args:
            chosen: the removals, by number.
            folded: what their projections make of the transforms that take them in; without it these hold zeros.
        """
        copy = clone(self.model, lambda tensor: tensor)
        operate(copy, self.proven(chosen).edits if chosen else (), folded)
        return copy
