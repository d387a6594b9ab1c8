"""The report of a comparison: each measure with its interval, and the saving."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layerprune.cost import Latency, Saving
from layerprune.tables import ShownAsTable, Table, brief, table_text

_DRAWS = 1000  # bootstrap samples
_AT_ONCE = 2_000_000  # indices drawn together


@dataclass(frozen=True)
class Estimate:
    """A mean over samples.

    Attributes:
        value: the mean.
        low: lower end of its 95 % bootstrap interval over samples; nan for a single sample.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def __repr__(self) -> str:
        return brief(self, str(self))


def estimate(parts: Sequence[np.ndarray], combine: Callable[[list[np.ndarray]], np.ndarray], seed: int = 0) -> Estimate:
    """Combine sums over samples into a number, with a bootstrap interval over samples.

    ``parts`` are ``(sample,)`` arrays, summed before ``combine``. Equal seeds draw the same samples for two models.
    """
    value = float(combine([part.sum() for part in parts]))
    num = len(parts[0])
    if num < 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // num)
    found: list[np.ndarray] = []
    for start in range(0, _DRAWS, step):
        draws = rng.integers(0, num, (min(step, _DRAWS - start), num))
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw of samples without a prediction is left out
            found.append(combine([part[draws].sum(1) for part in parts]))
    low, high = np.nanpercentile(np.concatenate(found), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True)
class Pair:
    """A measure of both models, and its change on the same samples: the difference, or for perplexities the ratio."""

    original: Estimate
    pruned: Estimate
    change: Estimate

    def __repr__(self) -> str:
        return brief(self, f"{self.original.value:.4g} → {self.pruned.value:.4g}, change {self.change}")


@dataclass(frozen=True, kw_only=True)
class Fidelity(ShownAsTable):
    """The comparison of a pruned model with the original.

    Attributes:
        num_samples: number of samples.
        relative_l2: L2 distance of the outputs, relative to the original's norm.
        cosine: of the angle between the outputs.
        kl: KL divergence from the original's distribution, in nats per prediction; None for ``values``.
        top1_agreement: share of predictions with the same most likely class.
        perplexity: of the tokens, with the ratio; for causal language models.
        greedy_agreement: share of greedily generated tokens before the first difference; only on request.
        repetition: share of repeated four-grams among generated tokens.
        metric: the user's metric, with the difference.
        saving: parameters, bytes, MACs and memory of both models.
        latency: of both models, timed in turn; only on request.
        notes: notes for the user.
    """

    num_samples: int
    relative_l2: Estimate
    cosine: Estimate
    saving: Saving
    kl: Estimate | None = None
    top1_agreement: Estimate | None = None
    perplexity: Pair | None = None
    greedy_agreement: Estimate | None = None
    repetition: Pair | None = None
    metric: Pair | None = None
    latency: Mapping[str, Latency] | None = None
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return table rows of text: measure, original, pruned model, comparison."""
        between = [
            ("relative L2 of the output", self.relative_l2),
            ("cosine of the output", self.cosine),
            ("KL divergence, nats", self.kl),
            ("same most likely class", self.top1_agreement),
            ("same greedy tokens", self.greedy_agreement),
        ]
        found = [(label, "", "", str(one)) for label, one in between if one is not None]
        pairs = [
            ("perplexity (ratio)", self.perplexity),
            ("repeated four-grams", self.repetition),
            ("metric", self.metric),
        ]
        found += [(label, str(p.original), str(p.pruned), str(p.change)) for label, p in pairs if p is not None]
        if self.latency is not None:
            before, after = self.latency["original"], self.latency["pruned"]
            ratio = after.ratio_to(before)
            found.append(("latency", _ms(before.median_ms), _ms(after.median_ms), str(ratio)))
        return found + self.saving.rows()

    def as_table(self) -> Table:
        """One row for each measure: original, pruned model, comparison."""
        columns = ("", "original", "pruned", f"on {self.num_samples} samples")
        return Table(columns=columns, rows=tuple(self.rows()), notes=self.notes)

    def __str__(self) -> str:
        return table_text(self.as_table())

    def __repr__(self) -> str:
        found = [f"on {self.num_samples} samples: relative L2 {self.relative_l2.value:.4g}"]
        found += [] if self.kl is None else [f"KL {self.kl.value:.4g}"]
        found += [] if self.perplexity is None else [f"perplexity × {self.perplexity.change.value:.4g}"]
        share = self.saving.share("num_params")
        found += [] if share is None else [f"{-share:+.1%} parameters"]
        return brief(self, ", ".join(found))


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 999.5 else f"{value:.3g} ms"
