"""Runs both models on the same batches, and takes each measure per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerprune.capture import Batch, Sandbox, notes_of, on_batch, read_calibration, real_sandbox
from layerprune.cost import Latency, Saving, compare_latency, measure, saved
from layerprune.environment import locked, progress_bar
from layerprune.errors import FidelityError, ended_by
from layerprune.fidelity.divergence import Divergence, Kind, divergence_named, divergence_of
from layerprune.fidelity.language import generations, is_causal, tokens_of
from layerprune.fidelity.report import Estimate, Fidelity, Pair, estimate
from layerprune.fidelity.sample_stats import Sampled, added, distances, divergences, repeated, surprise
from layerprune.modules import unwrap

#: Scores an output, given the user's batch: one score per sample, or one for the whole batch.
Metric = Callable[[Any, Any], Any]
Combine = Callable[[list[np.ndarray]], np.ndarray]
_WHO = ("the original", "the pruned model")


@locked
def compare(
    original: nn.Module,
    pruned: nn.Module,
    batches: Iterable[Any],
    *,
    kind: Kind | None = None,
    metric: Metric | None = None,
    num_generated: int = 0,
    latency: bool = False,
    seed: int = 0,
) -> Fidelity:
    """Compare a pruned model with the original on data that neither planning nor repair has seen.

    Both models run in eval mode in sandboxes that share their weights; modes, hooks, buffers and the RNG are kept.
    Tokens masked by ``attention_mask`` are left out. For causal language models the perplexity is measured, too.

    Args:
        original: the model before pruning.
        pruned: the pruned model.
        batches: real inputs in the form that the forward takes.
        kind: ``distribution`` for logits, ``values`` for other numbers. If None, ``distribution`` for an output named
            ``logits``, or with as many classes as the model states.
        metric: the user's measure, ``metric(output, batch)``; its mean over samples is reported for both models.
        num_generated: number of tokens that a causal language model generates greedily after the first half of a
            sequence.
        latency: whether to time both models on the first batch.
        seed: for the bootstrap.

    Returns:
        Each measure with a 95 % interval over samples, and the saving in parameters, MACs and bytes.

    Raises:
        CalibrationError: there are no batches, or they could not be read.
        FidelityError: a forward or the metric raises, or the outputs do not match or are not finite.
    """
    original, pruned = unwrap(original), unwrap(pruned)
    read = read_calibration(batches, original)
    shades = real_sandbox(original), real_sandbox(pruned)
    comparison = _Comparison(original, shades, metric, divergence_named(kind))
    comparison.notes += notes_of(read)
    with progress_bar("comparing") as told:
        for number, batch in enumerate(read):
            comparison.take(number, batch)
            told(number + 1, len(read))
    if num_generated:
        comparison.generate(read, num_generated)
    saving = saved(*(measure(model, read[0].inputs) for model in (original, pruned)))
    timed = compare_latency({"original": original, "pruned": pruned}, read[0].inputs) if latency else None
    return comparison.result(saving, timed, seed)


class _Comparison:
    """Collects measures per sample, batch by batch."""

    def __init__(
        self, original: nn.Module, shades: tuple[Sandbox, Sandbox], metric: Metric | None, harm: Divergence | None
    ) -> None:
        self.model = original
        self.shades = shades
        self.metric = metric
        self.harm = harm
        self.causal: bool | None = None
        self.found: dict[str, list[Sampled]] = {}
        self.notes: list[str] = []

    def note(self, **measures: Sampled) -> None:
        for name, one in measures.items():
            self.found.setdefault(name, []).append(one)

    def take(self, number: int, batch: Batch) -> None:
        outs = [self.run(which, number, batch) for which in (0, 1)]
        self.harm = self.harm or divergence_of(self.model, outs[0])
        pairs = self.pairs(number, outs)
        relative, cosine = distances(pairs, batch.mask, batch.num_samples)
        self.note(relative=relative, cosine=cosine)
        if self.harm.kind == "distribution":
            logits = pairs[0]
            found = [divergences(*pair, batch.mask) for pair in pairs[: self.harm.num_predictions(outs[0])]]
            divergence, same = (added(some) for some in zip(*found, strict=True))
            self.note(divergence=divergence, same=same)
            tokens = tokens_of(batch, logits[0])
            if tokens is not None:
                if self.causal is None:
                    self.causal = is_causal(self.shades[0], batch, tokens, logits[0])
                if self.causal:
                    before, after = (surprise(one, tokens.ids, batch.mask) for one in logits)
                    self.note(surprise_before=before, surprise_after=after)
        if self.metric is not None:
            before, after = (self.scored(number, out, batch) for out in outs)
            self.note(metric_before=before, metric_after=after)

    def run(self, which: int, number: int, batch: Batch) -> Any:
        with on_batch(self.model, batch.inputs, f"batch {number}", FidelityError, who=_WHO[which]):
            return self.shades[which].forward(batch.inputs)

    def pairs(self, number: int, outs: list[Any]) -> list[tuple[Tensor, Tensor]]:
        assert self.harm is not None
        some = [self.harm.outputs(out) for out in outs]
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in some]
        if shapes[0] != shapes[1]:
            raise FidelityError(
                f"the two models return different tensors on batch {number}: {shapes[0]} and {shapes[1]}; "
                "compare a model with what has become of it"
            )
        if not some[0]:
            raise FidelityError("the models return no tensor of floating point: there is nothing to compare")
        for which, tensors in enumerate(some):
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                raise FidelityError(f"{_WHO[which]} returns values that are not finite on batch {number}")
        return [(one, other.to(one.device)) for one, other in zip(*some, strict=True)]

    def scored(self, number: int, out: Any, batch: Batch) -> Sampled:
        """The user's metric of a batch; one score for a batch counts for each of its samples."""
        assert self.metric is not None
        try:
            scores = np.atleast_1d(np.asarray(torch.as_tensor(self.metric(out, batch.item)).double().cpu())).ravel()
        except Exception as error:  # the user's own code
            raise FidelityError(ended_by(f"the metric raised on batch {number}", error)) from error
        weight = batch.num_samples if len(scores) == 1 else 1
        return Sampled(scores * weight, np.full(len(scores), float(weight)))

    def generate(self, batches: Sequence[Batch], count: int) -> None:
        if not self.causal:
            self.notes.append("nothing was generated: the output is not the next tokens' logits")
            return
        assert self.harm is not None
        for number, batch in enumerate(batches):
            tokens = tokens_of(batch, self.harm.outputs(self.run(0, number, batch))[0])
            if tokens is None:
                continue
            before, after = generations(self.shades, tokens, batch.mask, count)
            agreeing = (before == after).long().cumprod(1).sum(1)
            ones = np.ones(len(before))
            self.note(greedy=Sampled(agreeing.cpu().double().numpy() / count, ones))
            if count >= 4:
                said = [Sampled(repeated(ids).double().numpy(), ones) for ids in (before, after)]
                self.note(repeated_before=said[0], repeated_after=said[1])

    def result(self, saving: Saving, timed: Mapping[str, Latency] | None, seed: int) -> Fidelity:

        def mean(name: str) -> Estimate | None:
            return estimate(self.parts(name), lambda sums: sums[0] / sums[1], seed) if name in self.found else None

        relative, cosine = mean("relative"), mean("cosine")
        assert relative is not None
        assert cosine is not None
        return Fidelity(
            num_samples=len(self.parts("relative")[0]),
            relative_l2=relative,
            cosine=cosine,
            saving=saving,
            kl=mean("divergence"),
            top1_agreement=mean("same"),
            perplexity=self.pair("surprise", _exponential, _ratio_of_exponentials, seed),
            greedy_agreement=mean("greedy"),
            repetition=self.pair("repeated", _mean, _difference, seed),
            metric=self.pair("metric", _mean, _difference, seed),
            latency=timed,
            notes=tuple(self.notes),
        )

    def parts(self, name: str) -> list[np.ndarray]:
        some = self.found[name]
        return [np.concatenate([one.total for one in some]), np.concatenate([one.weight for one in some])]

    def pair(self, name: str, single: Combine, both: Combine, seed: int) -> Pair | None:
        if f"{name}_before" not in self.found:
            return None
        before, after = self.parts(f"{name}_before"), self.parts(f"{name}_after")
        return Pair(
            estimate(before, single, seed), estimate(after, single, seed), estimate([*before, *after], both, seed)
        )


def _mean(sums: list[np.ndarray]) -> np.ndarray:
    return sums[0] / sums[1]


def _difference(sums: list[np.ndarray]) -> np.ndarray:
    return sums[2] / sums[3] - sums[0] / sums[1]


def _exponential(sums: list[np.ndarray]) -> np.ndarray:
    return np.exp(sums[0] / sums[1])


def _ratio_of_exponentials(sums: list[np.ndarray]) -> np.ndarray:
    return np.exp(_difference(sums))
