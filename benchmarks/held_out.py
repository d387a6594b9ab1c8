"""Held-out data: what edits of a model do there, and whether that tells one set of edits from another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerprune import UniversalLayerPruner
from layerprune.capture import Batch, read_calibration
from layerprune.edits import Edit
from layerprune.fidelity import Divergence
from layerprune.impact import ImpactScores, ScoringContext, ablate

NUM_DRAWS = 10_000
LEVEL = 95  # %


class HeldOut:
    """Held-out batches of a model.

    Args:
        pruner: of the model.
        batches: what its forward takes.
        harm: how outputs are compared.
    """

    def __init__(self, pruner: UniversalLayerPruner, batches: Sequence[object], harm: Divergence) -> None:
        self.pruner, self.harm = pruner, harm
        self.batches = read_calibration(batches, pruner._original)
        self.samples = [one for batch in self.batches for one in samples_of(batch)]

    def divergence_of(self, edits: Sequence[Edit]) -> float:
        """What edits do to the output."""
        return float(self._made(edits, self.batches).impacts[0])

    def by_sample(self, edits: Sequence[Edit]) -> tuple[np.ndarray, np.ndarray]:
        """What they do to that of each sample, ``(sample,)``, and of how many predictions each is the sum."""
        found = self._made(edits, self.samples)
        return found.change[:, 0], found.size[:, 0]

    def _made(self, edits: Sequence[Edit], batches: Sequence[Batch]) -> ImpactScores:
        return ablate(
            ScoringContext(model=self.pruner._original, graph=self.pruner.graph, removals=[], batches=batches),
            [edits],
            self.harm,
        )


def samples_of(batch: Batch) -> list[Batch]:
    """A batch as one of each sample; as it is where samples cannot be told."""
    found = [batch.samples(number, number + 1) for number in range(batch.num_samples)]
    return [one for one in found if one is not None] or [batch]


def interval(ours: np.ndarray, theirs: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """The paired bootstrap's interval of how much more harm is done by ours than by theirs.

    Args:
        ours: the harm to each sample, ``(sample,)``.
        theirs: the same, of the same samples.
        sizes: of how many predictions each is the sum.
    """
    draws = np.random.default_rng(0).integers(0, len(ours), (NUM_DRAWS, len(ours)))
    differences = (ours - theirs)[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.percentile(differences, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
