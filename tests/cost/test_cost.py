"""What a model costs: multiply-accumulates, bytes and latency, against answers derived by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerprune import UniversalLayerPruner, applied
from layerprune.capture import real_sandbox
from layerprune.cost import (
    Latency,
    activation_peak_bytes,
    buffer_bytes,
    compare_latency,
    count_macs,
    measure,
    param_bytes,
    saved,
)
from layerprune.cost.formulas import formulas
from layerprune.cost.macs import macs_by_module, tally_macs
from layerprune.cost.memory import _peak, kv_cache_bytes_per_token
from layerprune.cost.report import Cost
from layerprune.errors import CostError
from layerprune.inputs import Inputs
from models.nets import ExampleModel


def given(*args: Any, **kwargs: Any) -> Inputs:
    return Inputs(args, kwargs)


class Does(nn.Module):
    """A forward that is one function of its arguments."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args) if not self._modules else self.function(self, *args)


# ---- multiply-accumulates ----------------------------------------------------------------------------------------

MODULES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "linear": (nn.Linear(3, 5), (2, 7, 3), 2 * 7 * 3 * 5),
    "linear of a vector": (nn.Linear(3, 5), (3,), 3 * 5),
    "conv, grouped and strided": (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (2, 4, 9, 9), 2 * 5 * 5 * 6 * 2 * 9),
    "conv, depthwise": (nn.Conv1d(4, 4, 3, groups=4), (2, 4, 9), 2 * 7 * 4 * 3),
    "conv, transposed": (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (1, 4, 5, 5), 5 * 5 * 4 * 3 * 9),
    "norm and activation": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), (2, 3, 4, 4), 0),
    # (4 gates, 8 units) × (input + state), twice for two directions; the second layer reads both directions.
    "lstm": (nn.LSTM(4, 8, 2, bidirectional=True), (5, 2, 4), 5 * 2 * 2 * (32 * (4 + 8) + 32 * (16 + 8))),
    "gru": (nn.GRU(4, 8, 2), (5, 2, 4), 5 * 2 * (24 * (4 + 8) + 24 * (8 + 8))),
    # Four projections of 8 × 8, and two feed-forward layers of 8 × 16; two heads of 4 score 5 × 5 pairs and sum them.
    "encoder layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (2, 5, 8),
        2 * 5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 2 * 5 * 5 * (4 + 4),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_macs_of_a_module_are_those_by_hand(name: str) -> None:
    model, shape, macs = MODULES[name]
    assert count_macs(model, given(torch.randn(shape))) == macs
    assert count_macs(copy.deepcopy(model).to("meta"), given(torch.empty(shape, device="meta"))) == macs


def q_k_v(heads: int = 4, value: int = 8, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = [(2, 4, 6, 8), (2, heads, 10, 8), (2, heads, 10, value)]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def in_math(*args: Tensor) -> Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args)


sdpa = F.scaled_dot_product_attention
ATTENTIONS: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "flash": (sdpa, q_k_v()),
    "flash, half precision": (sdpa, q_k_v(dtype=torch.bfloat16)),
    "flash, causal": (lambda *args: sdpa(*args, is_causal=True), q_k_v()),
    "flash, masked": (sdpa, [*q_k_v(), torch.ones(6, 10, dtype=torch.bool)]),
    "flash, fewer keys' heads": (lambda *args: sdpa(*args, enable_gqa=True), q_k_v(heads=2)),
    "math": (in_math, q_k_v()),
    "efficient": (
        lambda *args: torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, False)[0],
        q_k_v(),
    ),
    "overrideable": (
        lambda *args: torch.ops.aten._scaled_dot_product_fused_attention_overrideable(*args)[0],
        q_k_v(),
    ),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_counts_its_scores_and_their_sum_whatever_the_kernel(name: str) -> None:
    function, tensors = ATTENTIONS[name]
    assert count_macs(Does(function), given(*tensors)) == 2 * 4 * 6 * 10 * (8 + 8)


def test_attention_with_narrow_values_counts_them_as_narrow() -> None:
    assert count_macs(Does(sdpa), given(*q_k_v(value=5))) == 2 * 4 * 6 * 10 * (8 + 5)


def randn(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


PRODUCTS: dict[str, tuple[Callable[..., Any], list[Tensor], int]] = {
    "mv": (torch.mv, randn((3, 4), (4,)), 12),
    "dot": (torch.dot, randn((4,), (4,)), 4),
    "addmv": (torch.addmv, randn((3,), (3, 4), (4,)), 12),
    "addbmm": (torch.addbmm, randn((3, 5), (2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
    "einsum": (lambda a, b: torch.einsum("bij,bjk->bik", a, b), randn((2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
    "bilinear": (F.bilinear, randn((2, 3), (2, 4), (5, 3, 4)), 2 * 5 * 3 * 4),
    "distances": (torch.cdist, randn((2, 30, 4), (2, 40, 4)), 2 * 30 * 40 * 4),
    "convolution over time": (torch.conv_tbc, randn((5, 2, 4), (3, 4, 6), (6,)), 3 * 2 * 6 * 3 * 4),
    "addmm with activation": (torch._addmm_activation, randn((3,), (2, 4), (4, 3)), 24),
    "integers": (torch._int_mm, [torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)], 4096),
    "grouped": (
        lambda a, b, ends: torch._grouped_mm(a, b, offs=ends),
        [*(t.bfloat16() for t in randn((24, 32), (2, 32, 16))), torch.tensor([8, 24], dtype=torch.int32)],
        24 * 32 * 16,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_that_torch_counts_as_nothing_count(name: str) -> None:
    function, tensors, macs = PRODUCTS[name]
    assert count_macs(Does(function), given(*tensors)) == macs


def test_cudnn_recurrences_count_each_weight_once_a_step() -> None:
    formula = formulas()[torch.ops.aten._cudnn_rnn]
    assert formula((5, 2, 4), [(32, 4), (32, 8), (32,), (32,)], 4) == 2 * 5 * 2 * 32 * (4 + 8)


def llama(layers: int = 4, **config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    settings = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "num_hidden_layers": layers}
    whole = transformers.LlamaConfig(hidden_size=64, intermediate_size=96, **settings, **config)
    return transformers.LlamaForCausalLM(whole)


def tokens(batch: int = 2, length: int = 7) -> Tensor:
    return torch.arange(batch * length).reshape(batch, length) % 50


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_macs_of_a_llama_are_those_by_hand(attention: str) -> None:
    model = llama(attn_implementation=attention)
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96  # q, k, v, o; gate, up, down
    scores = 2 * 4 * 7 * 7 * (16 + 16)  # 2 samples, 4 heads of 16
    macs = 2 * 7 * (4 * layer + 64 * 50) + 4 * scores
    assert count_macs(model, given(input_ids=tokens())) == macs
    with torch.device("meta"):
        assert count_macs(llama(), given(input_ids=tokens())) == macs


def test_macs_by_module_hold_what_is_inside_and_shared_modules_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared, nn.Linear(4, 2))
    found = macs_by_module(model, given(torch.randn(3, 4)))
    assert found == {"": 3 * 40, "0": 3 * 16, "0.0": 2 * 3 * 16, "2": 3 * 8}


def test_a_forward_that_depends_on_values_counts_for_these_inputs() -> None:
    model = Does(lambda self, x: self.linear(x[x[:, 0] > 0]), linear=nn.Linear(4, 5))
    inputs = given(torch.tensor([[1.0] * 4, [-1.0] * 4, [2.0] * 4]))
    assert count_macs(model, inputs) == 2 * 4 * 5
    assert activation_peak_bytes(model, inputs) == 2 * 4 * 4 + 2 * 5 * 4  # the mask has gone by then
    with pytest.raises(CostError, match="the meta device has no values"):
        count_macs(model.to("meta"), inputs)


def test_operations_without_a_formula_are_named() -> None:
    @torch.library.custom_op("layerprune_tests::scan", mutates_args=())
    def scan(x: Tensor) -> Tensor:
        return x.clone()

    scan.register_fake(torch.empty_like)
    model = Does(lambda self, x: scan(self.linear(x)), linear=nn.Linear(4, 5))
    assert tally_macs(model, given(torch.randn(2, 4))).uncounted == ("layerprune_tests.scan",)
    assert tally_macs(model, given(torch.randn(2, 4))).total == 40
    assert "layerprune_tests.scan" in measure(model, given(torch.randn(2, 4))).notes["macs"]


# ---- memory ------------------------------------------------------------------------------------------------------


def test_params_count_in_their_dtypes_and_ties_once_and_buffers_apart() -> None:
    embedding, head = nn.Embedding(10, 4, dtype=torch.bfloat16), nn.Linear(4, 10, bias=False, dtype=torch.bfloat16)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head, nn.BatchNorm1d(10))
    assert param_bytes(model) == 10 * 4 * 2 + 2 * 10 * 4
    assert buffer_bytes(model) == 2 * 10 * 4 + 8  # mean, variance, and a count of batches in int64
    assert param_bytes(nn.Linear(4, 3, device="meta")) == 5 * 3 * 4


def test_tied_embeddings_of_a_llama_count_once() -> None:
    tied, apart = llama(tie_word_embeddings=True), llama(tie_word_embeddings=False)
    assert param_bytes(apart) - param_bytes(tied) == 50 * 64 * 4


@pytest.mark.parametrize(
    ("inplace", "peak"),
    [(False, 2 * (8 + 8) * 4), (True, 2 * (8 + 3) * 4)],  # the activation and what it reads; the last layer and that
)
def test_the_peak_of_a_chain_is_two_neighbours(inplace: bool, peak: int) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 3))
    assert activation_peak_bytes(model, given(torch.randn(2, 4))) == peak
    assert activation_peak_bytes(model.half(), given(torch.randn(2, 4).half())) == peak // 2


class Residual(nn.Module):
    """A stem of width 8, and beside it a branch of width 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return y + self.down(torch.relu(self.up(y)))


def test_the_peak_of_a_residual_net_holds_the_skip() -> None:
    # At the relu: the skip, what the relu reads, what it makes.
    assert activation_peak_bytes(Residual(), given(torch.randn(2, 4))) == 2 * (8 + 32 + 32) * 4


def test_the_peak_without_a_branch_is_that_of_what_is_left() -> None:
    model = Residual()
    pruner = UniversalLayerPruner(model, example_inputs=torch.randn(2, 4), protect_io=False)
    removal = next(r for r in pruner.removals if set(r.groups) == {"up", "down"} and r.kind == "branch")
    with applied(model, removal.edits):
        inputs = given(torch.randn(2, 4))
        assert count_macs(model, inputs) == 2 * 4 * 8
        assert activation_peak_bytes(model, inputs) <= 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("part", "peak"),
    [
        (lambda wide: wide[:, :1], 2 * (100 + 100) * 4),  # a view holds the whole
        (lambda wide: wide[:, :1].clone(), 2 * (100 + 1) * 4),
    ],
)
def test_a_view_holds_what_it_looks_at(part: Callable[[Tensor], Tensor], peak: int) -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = part(self.one(x))
        return kept, self.two(x)

    model = Does(forward, one=nn.Linear(4, 100), two=nn.Linear(4, 100))
    assert activation_peak_bytes(model, given(torch.randn(2, 4))) == peak


def test_fake_tensors_live_as_long_as_real_ones() -> None:
    model, inputs = ExampleModel(), given(torch.randn(2, 3, 32, 32))
    shade = real_sandbox(model)
    assert activation_peak_bytes(model, inputs) == _peak(shade, shade.adapt(inputs)) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_of_a_llama_grows_by_its_keys_and_values(dtype: torch.dtype) -> None:
    model = llama().to(dtype)
    expected = 2 * 4 * 2 * 16 * dtype.itemsize  # keys and values, 4 layers, 2 heads of 16
    assert kv_cache_bytes_per_token(model, given(input_ids=tokens())) == expected
    assert kv_cache_bytes_per_token(model, given(tokens(1), use_cache=False)) == expected
    mask = torch.ones_like(tokens())
    assert kv_cache_bytes_per_token(model.to("meta"), given(input_ids=tokens(), attention_mask=mask)) == expected


def test_the_cache_shrinks_with_the_attention_layers() -> None:
    model = llama(head_dim=8)  # heads narrower than the model: what they return is no substitute for the branch
    inputs = given(input_ids=tokens(), use_cache=False)
    pruner = UniversalLayerPruner(model, example_inputs=dict(inputs.kwargs))
    pruned = pruner.prune(groups=[f"model.layers.{i}.self_attn.o_proj" for i in (1, 3)])
    before, after = measure(model, inputs), measure(pruned, inputs)
    assert before.kv_cache_bytes_per_token == 2 * 4 * 2 * 8 * 4
    assert after.kv_cache_bytes_per_token == 2 * 2 * 2 * 8 * 4
    assert saved(before, after).share("kv_cache_bytes_per_token") == 0.5
    attention = 2 * 7 * 64 * (32 + 16 + 16 + 32) + 2 * 4 * 7 * 7 * (8 + 8)
    assert saved(before, after).amount("macs") == 2 * attention


def test_only_the_decoder_s_own_keys_grow_in_an_encoder_decoder() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(d_model=32, d_kv=8, num_heads=4, num_layers=2, d_ff=48, vocab_size=50)
    inputs = given(input_ids=tokens(), decoder_input_ids=tokens(2, 3))
    assert kv_cache_bytes_per_token(transformers.T5ForConditionalGeneration(config), inputs) == 2 * 2 * 4 * 8 * 4


def test_without_a_cache_there_is_none_and_the_reason_is_told() -> None:
    cost = measure(nn.Linear(4, 4), given(torch.randn(2, 4)))
    assert cost.kv_cache_bytes_per_token is None
    assert "no key-value cache" in cost.notes["kv_cache_bytes_per_token"]


# ---- the whole ---------------------------------------------------------------------------------------------------


def test_a_cost_is_all_of_it_and_prints_itself() -> None:
    cost = measure(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), given(torch.randn(2, 4)))
    assert (cost.num_params, cost.param_bytes, cost.macs, cost.activation_bytes) == (67, 268, 112, 128)
    assert ("parameter memory", "268 B") in cost.rows()
    assert "MACs                       112" in str(cost)


def test_a_saving_is_the_difference_and_its_share() -> None:
    before = Cost(num_params=1000, param_bytes=4000, macs=3 * 10**9, activation_bytes=3 * 2**19)
    saving = saved(
        before, Cost(num_params=750, param_bytes=3000, macs=10**9, notes={"activation_bytes": "the forward raised"})
    )
    assert (saving.amount("num_params"), saving.share("num_params")) == (250, 0.25)
    assert saving.amount("activation_bytes") is None
    assert saving.share("buffer_bytes") is None, "nothing of nothing"
    assert ("parameters", "1,000", "750", "-25.0%") in saving.rows()
    assert ("activation memory, peak", "1.50 MiB", "—", "—") in saving.rows()
    assert saved(before, before).rows()[0] == ("parameters", "1,000", "1,000", "0.0%")
    assert "Note: activation memory, peak: the forward raised" in str(saving)


def test_what_cannot_run_is_told_and_not_guessed() -> None:
    model, wrong = nn.Linear(4, 4), given(torch.randn(2, 5))
    with pytest.raises(CostError, match=r"Linear\.forward raised on the inputs"):
        count_macs(model, wrong)
    cost = measure(model, wrong)
    assert (cost.macs, cost.activation_bytes, cost.num_params) == (None, None, 20)
    assert cost.notes["macs"].startswith("Linear.forward raised")


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that measuring could leave behind."""
    modules = [(m.training, sorted(vars(m)), len(m._forward_hooks)) for m in model.modules()]
    tensors = [(id(t), t._version, t.tolist()) for t in (*model.parameters(), *model.buffers())]
    return [modules, tensors, torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_num_threads()]


@pytest.mark.parametrize("values", [False, True])
def test_measuring_leaves_the_model_as_it_was(values: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.norm(F.dropout(self.linear(x), training=True))
        return y[y[:, 0] > 0] if values else y

    model = Does(forward, linear=nn.Linear(4, 8), norm=nn.BatchNorm1d(8))
    model.norm.register_forward_hook(lambda *_: None)
    model.linear.eval()
    inputs = given(torch.randn(16, 4))
    before, data = snapshot(model), inputs.args[0].clone()
    measure(model, inputs)
    compare_latency({"model": model}, inputs, rounds=2, block_s=0.001)
    assert snapshot(model) == before
    assert torch.equal(inputs.args[0], data)


# ---- latency -----------------------------------------------------------------------------------------------------


def test_ten_times_the_work_takes_longer() -> None:
    fast, slow = (nn.Sequential(*(nn.Linear(256, 256) for _ in range(n))) for n in (1, 10))
    found = compare_latency({"fast": fast, "slow": slow}, given(torch.randn(32, 256)), rounds=5, block_s=0.005)
    assert list(found) == ["fast", "slow"]
    assert all(len(one.times_ms) == 5 and one.block >= 1 for one in found.values())
    assert found["slow"].median_ms > found["fast"].median_ms >= found["fast"].min_ms > 0
    assert found["fast"].block >= found["slow"].block
    assert found["slow"].ratio_to(found["fast"]).value > 1


def test_a_ratio_has_an_interval_from_paired_rounds() -> None:
    # The machine slows down half-way; in pairs that makes no difference.
    one = Latency((1.0, 1.1, 1.0, 5.0, 5.5, 5.0), 10, 1)
    two = Latency((2.0, 2.2, 2.0, 10.0, 11.0, 10.0), 10, 1)
    ratio = two.ratio_to(one)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert one.median_ms == pytest.approx(3.05)
    assert one.iqr_ms == pytest.approx(5.0 - 1.025)
    noisy = Latency((2.0, 3.0, 1.0, 9.0, 2.0, 4.0), 10, 1)
    assert noisy.ratio_to(two) == noisy.ratio_to(two), "the bootstrap draws from a seed of its own"
    assert noisy.ratio_to(two).low < noisy.ratio_to(two).value < noisy.ratio_to(two).high
    with pytest.raises(CostError, match="not from one comparison"):
        one.ratio_to(Latency((1.0,), 1, 1))


def test_what_cannot_be_timed_is_told() -> None:
    inputs = given(torch.randn(2, 4))
    with pytest.raises(CostError, match="'a' cannot be timed on the meta device"):
        compare_latency({"a": nn.Linear(4, 4, device="meta")}, inputs)
    with pytest.raises(CostError, match="'b' raised on the inputs"):
        compare_latency({"a": nn.Linear(4, 4), "b": nn.Linear(5, 4)}, inputs)
    with pytest.raises(CostError, match="two rounds at least"):
        compare_latency({"a": nn.Linear(4, 4)}, inputs, rounds=1)
