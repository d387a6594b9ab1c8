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
    """Lowers sets of removals and proves them; remembers the proven sets. The user's ``model`` stays unchanged."""

    def __init__(self, prover: Prover, removals: Sequence[Removal], model: nn.Module) -> None:
        self.prover = prover
        self.removals = removals
        self.model = model
        self._known: dict[tuple[int, ...], Lowering] = {}

    def proven(self, chosen: Sequence[int]) -> Lowering:
        """Lower removals together and prove the set; raises :class:`Refusal` where the set fails its proof."""
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
        """Lower a set without running it; raises :class:`Refusal` where removals exclude each other."""
        picked = [self.removals[i] for i in chosen]
        cut = join_cuts([(r.cut, r.dead) for r in picked], self.prover.graph)
        able = not any(key_of(r.cut) in self.prover.unshortened for r in picked)  # a failed cut fails in sets, too
        joint = self.prover.lower_removal(cut, shorten=shorten and able)
        if not all(r.dead <= joint.dead for r in picked):
            raise Refusal(RefusalCode.ONE_NEEDS_ANOTHER)
        return joint

    def likely(self, chosen: Sequence[int]) -> Lowering:
        """Return the proven lowering where it is known, else the first that a proof would try."""
        return self._known.get(tuple(chosen)) or self.lower_removal(chosen)

    def num_params(self, chosen: Sequence[int]) -> int:
        """Number of parameters that a proven set removes; shared ones once."""
        if not chosen:
            return 0
        return params_taken(self.prover.graph, self.prover.modules, self.proven(chosen)).size(self.prover.graph)

    def why_no_smaller(self, chosen: Sequence[int]) -> Refusal | None:
        """Return the reason why a proven set leaves a model that is no smaller; None where it is smaller.

        A transform may grow by more than the set removes: earlier removals can move the source of its projection.
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
        """Copy the model without a proven set; the copy shares the tensors that stay.

        Transforms that projections are folded into get their weights from ``folded``; without it they hold zeros.
        """
        copy = clone(self.model, lambda tensor: tensor)
        operate(copy, self.proven(chosen).edits if chosen else (), folded)
        return copy
