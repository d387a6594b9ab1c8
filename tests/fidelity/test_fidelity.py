"""Fidelity: what a comparison says of two models, against answers by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune.errors import CalibrationError, FidelityError
from layerprune.fidelity import compare
from layerprune.fidelity.report import estimate
from layerprune.fidelity.sample_stats import repeated
from models.nets import Net, Photograph, copy_of, linear, parameter, randomised, rows, tokens

BATCHES = [rows(6, seed=seed) for seed in (1, 2)]


def scaled(factor):
    """A model that returns a multiple of its input."""
    return Net(lambda net, x: x * net.factor, factor=nn.Parameter(torch.tensor(float(factor))))


def test_a_model_is_as_near_as_can_be_to_itself():
    model = randomised(Net(lambda net, x: net.head(torch.relu(net.stem(x))), stem=linear(), head=linear(8, 5)))
    found = compare(model, copy_of(model), BATCHES)
    assert (found.relative_l2.value, found.cosine.value) == (0, pytest.approx(1))
    assert found.num_samples == 12
    assert found.saving.share("num_params") == 0
    assert found.kl is None


def test_a_multiple_is_off_by_its_factor_and_at_no_angle():
    found = compare(scaled(1), scaled(1.5), BATCHES)
    assert found.relative_l2.value == pytest.approx(0.5)
    assert found.relative_l2.low == pytest.approx(0.5)
    assert found.cosine.value == pytest.approx(1)
    assert compare(scaled(1), scaled(-1), BATCHES).cosine.value == pytest.approx(-1)


def test_tokens_that_pad_count_nowhere():
    def forward(net, x, attention_mask):
        return torch.cat([x[:, :3], net.factor * x[:, 3:]], 1)

    x = tokens(4, 5)
    batch = {"x": x, "attention_mask": torch.tensor([[1, 1, 1, 0, 0]] * 4)}
    one, other = (Net(forward, factor=nn.Parameter(torch.tensor(factor))) for factor in (1.0, 9.0))
    assert compare(one, other, [batch]).relative_l2.value == 0
    whole = {**batch, "attention_mask": torch.ones(4, 5)}
    assert compare(one, other, [whole]).relative_l2.value > 1


class Classifier(nn.Module):
    """Returns logits that it holds, one row for each sample."""

    def __init__(self, *logits):
        super().__init__()
        self.num_classes = len(logits[0])
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits[: len(x)] + 0 * x[:, :1]


def test_of_distributions_the_divergence_and_the_likeliest_class_are_compared():
    one = Classifier([0.0, math.log(3)], [0.0, 0.0])  # 1/4, 3/4 and even
    other = Classifier([math.log(3), 0.0], [0.0, 0.0])
    found = compare(one, other, [torch.ones(2, 1)])
    # 1/4 log(1/3) + 3/4 log(3) = log(3) / 2 for the first sample, 0 for the second
    assert found.kl.value == pytest.approx(math.log(3) / 4)
    assert found.top1_agreement.value == pytest.approx(0.5)
    assert found.top1_agreement.low == 0
    assert found.top1_agreement.high == 1
    assert compare(one, other, [torch.ones(2, 1)], kind="values").kl is None
    assert compare(scaled(1), scaled(1), BATCHES, kind="distribution").kl.value == pytest.approx(0, abs=1e-6)


class Bigrams(nn.Module):
    """A language model whose next token depends on the last one only; of a table of logits."""

    def __init__(self, table, looks_ahead=False):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))
        self.looks_ahead = looks_ahead

    def forward(self, input_ids, attention_mask=None):
        logits = self.table[input_ids]
        return {"logits": logits + logits.flip(1) if self.looks_ahead else logits}


COUNTING = [[0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]]
STUCK = [[0.0, 9.0, 0.0], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]
TEXT = {"input_ids": torch.tensor([[0, 1, 2, 0, 1, 2], [1, 2, 0, 1, 2, 0]])}


def test_of_a_language_model_the_perplexity_is_measured():
    even = Bigrams([[0.0] * 3] * 3)
    found = compare(Bigrams(COUNTING), even, [TEXT, TEXT])
    sure = math.exp(F.cross_entropy(torch.tensor([COUNTING[0]]), torch.tensor([1])).item())
    assert found.perplexity.original.value == pytest.approx(sure)
    assert found.perplexity.pruned.value == pytest.approx(3)
    assert found.perplexity.change.value == pytest.approx(3 / sure)
    assert compare(Bigrams(COUNTING, True), even, [TEXT]).perplexity is None  # its predictions see the answers


def test_padding_is_no_text():
    mask = {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)}
    padded = {"input_ids": torch.tensor([[0, 1, 2, 0, 0, 0], [1, 2, 0, 1, 1, 1]]), **mask}
    found = compare(Bigrams(COUNTING), Bigrams(STUCK), [padded])
    short = {"input_ids": padded["input_ids"][:, :4]}
    assert found.perplexity.pruned.value == pytest.approx(
        compare(Bigrams(COUNTING), Bigrams(STUCK), [short]).perplexity.pruned.value
    )


def test_greedy_tokens_agree_up_to_the_first_that_differs():
    """From 0 1 2 one counts on, 0 1 2 0 1 2 0 1; the other says 0 1 1 1 1 1 1 1, and from 1 2 0 nothing but 1."""
    found = compare(Bigrams(COUNTING), Bigrams(STUCK), [TEXT], num_generated=8)
    assert found.greedy_agreement.value == pytest.approx((2 / 8 + 1 / 8) / 2)
    assert found.repetition.original.value == pytest.approx(2 / 5)  # three of the five four-grams are new
    assert found.repetition.pruned.value == pytest.approx((3 / 5 + 4 / 5) / 2)  # 0111 and 1111; 1111
    assert "generated" in compare(scaled(1), scaled(1), BATCHES, num_generated=2).notes[0]


def test_repetition_counts_the_n_grams_that_were_there_before():
    assert repeated(torch.tensor([[1, 2, 1, 2, 1, 2], [1, 2, 3, 4, 5, 6]]), size=2).tolist() == pytest.approx([0.6, 0])


def test_a_metric_of_ones_own_is_reported_for_both():
    def error(out, batch):
        return (out - batch).abs().mean(1)

    found = compare(scaled(1), scaled(3), BATCHES, metric=error)
    expected = float(2 * torch.cat(BATCHES).abs().mean())
    assert found.metric.original.value == 0
    assert found.metric.pruned.value == pytest.approx(expected)
    assert found.metric.change.value == pytest.approx(expected)
    whole = compare(scaled(1), scaled(3), BATCHES, metric=lambda out, batch: float((out - batch).abs().mean()))
    assert whole.metric.pruned.value == pytest.approx(expected)


def test_intervals_are_those_of_the_mean_and_repeat_themselves():
    values = np.random.default_rng(0).normal(size=400)
    ones = np.ones(400)
    found = estimate([values, ones], lambda sums: sums[0] / sums[1])
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert found == estimate([values, ones], lambda sums: sums[0] / sums[1])
    assert math.isnan(estimate([values[:1], ones[:1]], lambda sums: sums[0] / sums[1]).low)


def test_it_prints_as_a_table_with_what_is_saved():
    big = Net(lambda net, x: net.b(net.a(x)), a=linear(), b=linear())
    small = Net(lambda net, x: net.b(x), b=big.b)
    text = str(compare(big, small, BATCHES, latency=True))
    assert "on 12 samples" in text
    assert "cosine of the output" in text
    assert "parameters" in text
    assert "-50.0%" in text
    assert "latency" in text
    assert len({len(line.split()) for line in text.splitlines()}) > 1


def test_bytes_multiply_accumulates_and_peak_memory_are_those_of_each_model():
    """Two linear layers of 8 and one of them: 72 float32 parameters each; 6 rows of 8 at 64 products a row."""
    big = Net(lambda net, x: net.b(net.a(x)), a=linear(), b=linear())
    small = Net(lambda net, x: net.b(x), b=big.b)
    saving = compare(big, small, BATCHES).saving
    assert (saving.before.num_params, saving.after.num_params) == (144, 72)
    assert (saving.before.param_bytes, saving.after.param_bytes) == (576, 288)
    assert (saving.before.macs, saving.after.macs) == (768, 384)
    assert (saving.before.activation_bytes, saving.after.activation_bytes) == (2 * 192, 192)
    assert (saving.before.peak_bytes, saving.after.peak_bytes) == (576 + 384, 288 + 192)
    assert ("memory in all, peak", "960 B", "480 B", "-50.0%") in saving.rows()


def test_latencies_have_a_ratio_with_an_interval():
    big = Net(lambda net, x: net.b(net.a(x)), a=linear(), b=linear())
    small = Net(lambda net, x: net.b(x), b=big.b)
    found = compare(big, small, BATCHES, latency=True)
    before, after = found.latency["original"], found.latency["pruned"]
    ratio = after.ratio_to(before)
    assert ratio.low <= ratio.value <= ratio.high
    _, *cells = next(row for row in found.rows() if row[0] == "latency")
    assert cells == [f"{before.median_ms:.3g} ms", f"{after.median_ms:.3g} ms", str(ratio)]
    assert compare(big, small, BATCHES).latency is None


def test_both_models_stay_as_they_are():
    one, other = scaled(1).train(), scaled(2)
    one.norm, other.norm = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
    before = Photograph(one), Photograph(other)
    compare(one, other, BATCHES)
    assert before == (Photograph(one), Photograph(other))


@pytest.mark.parametrize(
    ("other", "options", "says"),
    [
        (Net(lambda net, x: x[:, :3], p=parameter(1)), {}, r"different tensors on batch 0: \[\(6, 8\)\] and"),
        (Net(lambda net, x: x / 0, p=parameter(1)), {}, "pruned model returns values that are not finite on batch 0"),
        (Net(lambda net, x: x.no_such(), p=parameter(1)), {}, "pruned model raised on batch 0 .*no_such"),
        (scaled(1), {"metric": lambda out, batch: out.no_such()}, "metric raised on batch 0"),
        (Net(lambda net, x: x.long(), p=parameter(1)), {}, "different tensors"),
    ],
)
def test_what_cannot_be_compared_is_an_error_that_says_why(other, options, says):
    with pytest.raises(FidelityError, match=says):
        compare(scaled(1), other, BATCHES, **options)


def test_no_data_is_an_error():
    with pytest.raises(CalibrationError, match="no batch"):
        compare(scaled(1), scaled(1), [])
