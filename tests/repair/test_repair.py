"""Closed-form repair: where the gap is linear it is undone exactly, and what does not help is not kept."""

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.capture import capture, read_calibration
from layerprune.errors import CalibrationError, RepairError
from layerprune.fitting import STRENGTHS, Gram, Sums, add_output, as_weight, fit, matrix_of, output_of, rows_of
from layerprune.inputs import as_inputs
from layerprune.modules import write
from layerprune.repair import closed_form, find_sites, repair, untie
from layerprune.repair.report import Refitted, about_rows
from layerprune.repair.verdict import RepairVerdict
from models.nets import (
    Net,
    Photograph,
    close,
    conv,
    copy_of,
    image,
    linear,
    padded_and_not,
    parameter,
    randomised,
    rows,
    run,
    same_bits,
    tokens,
)

BATCHES = [rows(40, seed=seed) for seed in range(4)]
IMAGES = [image(8, seed=seed) for seed in range(4)]


def branched(activation=lambda x: x, **parts):
    """A stem, a branch that goes, an activation, a head."""

    def forward(net, x):
        x = net.stem(x)
        return net.head(activation(x + net.branch(x)))

    return randomised(Net(forward, **{"stem": linear(), "branch": linear(), "head": linear(), **parts}))


def without(model, group, example):
    pruner = UniversalLayerPruner(model, example_inputs=example)
    plan = pruner.plan(groups=[group])
    return plan.apply(model), plan.edits


# ---- what is exact --------------------------------------------------------------------------------------------------


def test_the_writer_before_a_gap_takes_a_linear_branch_in():
    """``relu(h + B h)`` with ``h = S x`` is ``relu(h')`` with ``S' = (1 + B) S``."""
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    report = repair(model, pruned, BATCHES, edits=edits)
    assert report.kept
    assert report.refitted[0].name == "stem"
    assert close(pruned.stem.weight, model.stem.weight + model.branch.weight @ model.stem.weight, 1e-3)
    x = rows(16, seed=9)
    assert close(run(pruned, x), run(model, x), 1e-3)
    assert sum(p.numel() for p in pruned.parameters()) == sum(p.numel() for p in model.parameters()) - 72


def test_the_reader_behind_a_gap_takes_a_linear_layer_in():
    """A layer between two activations goes: what feeds the gap cannot help, what reads it can."""

    def forward(net, x):
        return net.head(net.middle(torch.relu(net.stem(x))))

    model = randomised(Net(forward, stem=linear(), middle=linear(), head=linear()))
    pruned, edits = without(model, "middle", BATCHES[0])
    assert repair(model, pruned, BATCHES, edits=edits).kept
    assert same_bits(pruned.stem, model.stem)
    assert close(run(pruned, BATCHES[1]), run(model, BATCHES[1]), 1e-3)


def test_a_small_memory_is_kept_to_by_a_map_of_the_outputs():
    model = branched(torch.relu, stem=nn.Linear(64, 8))
    batches = [rows(80, 64, seed=seed) for seed in range(4)]
    pruned, edits = without(model, "branch", batches[0])
    tight = copy_of(pruned)
    report = repair(model, tight, batches, edits=edits, memory_bytes=20_000)
    assert {one.num_inputs for one in report.refitted} == {8}
    assert close(run(tight, batches[0]), run(model, batches[0]), 1e-3)
    kept = copy_of(pruned)
    report = repair(model, pruned, batches, edits=edits, memory_bytes=500)
    assert "memory_bytes=500; its bias may take the mean" in report.refused["stem"]
    assert torch.equal(pruned.stem.weight, kept.stem.weight)


def test_readers_of_one_tensor_that_do_not_fit_together_are_solved_one_after_the_other():
    def forward(net, x):
        x = torch.tanh(net.middle(torch.tanh(net.stem(x))))
        return torch.cat([net.head(x), net.other(x)], 1)

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "middle", "head", "other")}))
    pruned, edits = without(model, "middle", BATCHES[0])
    apart = copy_of(pruned)
    together = repair(model, pruned, BATCHES, edits=edits)
    tight = repair(model, apart, BATCHES, edits=edits, memory_bytes=7_000)  # of 6,120 for each
    assert [one.name for one in tight.refitted] == [one.name for one in together.refitted]
    # Both are solved where what they read is made: batches that do not wait start anew once.
    assert tight.num_forwards == together.num_forwards == (1, 1)
    assert close(apart.head.weight, pruned.head.weight)
    assert close(apart.other.weight, pruned.other.weight)


def norm_between(net, x):
    x = net.stem(x)
    return net.head(torch.relu(net.norm(net.write(torch.tanh(x))) + x + net.branch(x)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_is_solved_through_the_batch_norm_behind_it(bias):
    parts = {"stem": conv(3, 4), "write": conv(4, bias=bias), "branch": conv(4, size=1), "head": conv(4)}
    model = randomised(Net(norm_between, norm=nn.BatchNorm2d(4), **parts))
    pruned, edits = without(model, "branch", IMAGES[0])
    graphs = capture(model, as_inputs(IMAGES[0])), capture(pruned, as_inputs(IMAGES[0]))
    sites = {site.name: site for site in find_sites(*graphs, pruned, edits)[0]}
    assert sites["write"].scales == ("norm",)
    gain = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    assert close(sites["write"].scale(pruned).float(), gain.detach())
    before = (run(pruned, IMAGES[0]) - run(model, IMAGES[0])).norm()
    report = repair(model, pruned, IMAGES, edits=edits)
    assert report.kept
    assert (run(pruned, IMAGES[0]) - run(model, IMAGES[0])).norm() < 0.5 * before
    assert (pruned.write.bias is None) == (not bias)


def test_a_scale_per_channel_is_no_obstacle():
    def forward(net, x):
        x = net.stem(x)
        return net.head(torch.relu(x + net.scale * net.write(torch.tanh(x)) + net.branch(torch.tanh(x))))

    parts = {name: linear() for name in ("stem", "write", "branch", "head")}
    model = randomised(Net(forward, scale=parameter(8), **parts))
    batches = [tokens(16, 5, seed=seed) for seed in range(4)]
    pruned, edits = without(model, "branch", batches[0])
    repair(model, pruned, batches, edits=edits)
    assert close(run(pruned, batches[1]), run(model, batches[1]), 1e-2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = linear(), linear()

    def forward(self, x):
        x = x + self.one(torch.tanh(x))
        return x + self.other(torch.tanh(x))


def test_a_block_that_lost_all_its_branches_is_a_gap_like_any_other():
    """The writer before it is followed through the block, of which nothing is left."""

    def forward(net, x):
        x = net.stem(x)
        x = x + net.write(torch.tanh(x))
        return net.head(torch.relu(net.block(x)))

    model = randomised(Net(forward, stem=linear(), write=linear(), block=Block(), head=linear()))
    pruner = UniversalLayerPruner(model, example_inputs=BATCHES[0], granularity="branch")
    both = [i for i, r in enumerate(pruner.removals) if r.groups in (("block.one",), ("block.other",))]
    assert len(both) == 2
    plan = pruner._planner.of(both, ())
    pruned = plan.apply(model)
    report = repair(model, pruned, BATCHES, edits=plan.edits)
    assert [one.name for one in report.refitted] == ["write", "head"]
    assert report.after < report.before


class Sum(nn.Module):
    def forward(self, one, other):
        return one + other


class Twice(nn.Module):
    def forward(self, x):
        return x + x


@pytest.mark.parametrize(("joint", "reached"), [(Sum(), "joint"), (Twice(), "write")])
def test_a_module_that_adds_is_a_sum_only_of_two(joint, reached):
    def forward(net, x):
        x = net.stem(x)
        made = net.write(torch.tanh(x))
        return net.head(torch.relu(net.joint(made, x) if isinstance(joint, Sum) else net.joint(made)))

    model = Net(forward, joint=joint, **{name: linear() for name in ("stem", "write", "head")})
    graph = capture(model, as_inputs(BATCHES[0]))
    (site,) = [site for site in find_sites(graph, graph, model)[0] if site.name == "write"]
    assert graph.layers[graph.values[site.reached].layer].name == reached


# ---- rows and sums --------------------------------------------------------------------------------------------------

CONVS = [
    (nn.Conv1d(4, 6, 3, padding=1, stride=2), (3, 4, 9)),
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 6, 5)),
    (nn.Conv2d(4, 4, 3, dilation=2, groups=4, bias=False), (2, 4, 7, 8)),
    (nn.Conv2d(4, 6, (3, 1), padding="same"), (2, 4, 6, 5)),
    (nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="circular", stride=(1, 2)), (2, 4, 6, 5)),
    (nn.Conv3d(2, 4, 2, stride=2), (2, 2, 4, 5, 6)),
    (nn.Linear(4, 6), (3, 5, 4)),
    (nn.Linear(4, 6), (3, 4)),
]


@pytest.mark.parametrize(("module", "shape"), CONVS, ids=lambda value: type(value).__name__)
def test_rows_times_the_matrix_are_the_output(module, shape):
    read = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = module(read)
    bias = torch.zeros(out.shape[-1 if isinstance(module, nn.Linear) else 1]) if module.bias is None else module.bias
    pieces = list(rows_of(module, read, out, None))
    made = torch.cat([rows.double() @ matrix_of(module).mT for rows, _ in pieces], 1)
    wanted = torch.cat([wanted for _, wanted in pieces], 1)
    assert close(made.float(), (wanted - bias.detach().reshape(wanted.shape[0], 1, -1)).float())
    assert torch.equal(as_weight(module, matrix_of(module)), module.weight)


def test_the_linear_layer_of_gpt2_is_known():
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(6, 4)
    read = tokens(2, 3, 4)
    ((rows, wanted),) = rows_of(module, read, module(read).detach(), None)
    assert close((rows.double() @ matrix_of(module).mT).float(), (wanted - module.bias.detach()).float())
    assert torch.equal(as_weight(module, matrix_of(module)), module.weight)


@pytest.mark.parametrize("kind", ["linear", "without a bias", "Conv1D"])
def test_a_change_is_added_in_one_pass_where_the_transform_is_linear(kind):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    module = conv1d(5, 4) if kind == "Conv1D" else nn.Linear(4, 6, bias=kind == "linear")
    read, width = torch.randn(3, 7, 4), 5 if kind == "Conv1D" else 6
    weight, bias = torch.randn_like(module.weight), None if module.bias is None else torch.randn_like(module.bias)
    into = torch.randn(3, 7, width)
    expected = into + output_of(module, weight, bias, read)
    with torch.no_grad():
        assert add_output(module, weight, bias, read, into.view(21, 1, width))
    torch.testing.assert_close(into, expected.detach())


@pytest.mark.parametrize("otherwise", ["convolution", "strided", "half", "read there"])
def test_a_change_that_cannot_be_added_in_one_pass_is_left_to_others(otherwise):
    module = nn.Conv1d(4, 4, 1) if otherwise == "convolution" else nn.Linear(4, 4, bias=False)
    read = torch.randn(2, 4, 4)
    into = {
        "strided": torch.randn(2, 4, 4).transpose(1, 2),
        "half": torch.randn(2, 4, 4).half(),
        "read there": read.view(2, 2, 2, 4),
    }.get(otherwise, torch.randn(2, 4, 4))
    before = into.clone()
    assert not add_output(module, module.weight.detach(), None, read, into)
    assert torch.equal(into, before)


def test_rows_that_pad_are_left_out():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    read = tokens(2, 3, 4)
    ((rows, _),) = rows_of(nn.Linear(4, 4), read, read, mask)
    assert torch.equal(rows[0].float(), torch.stack([read[0, 0], read[0, 1], read[1, 0]]))


def sums_of(read, wanted, bias=False):
    gram = Gram(1, read.shape[1], device=read.device)
    read = torch.cat([read, torch.ones(len(read), 1)], 1).double()[None]
    found = Sums(gram, wanted.shape[1], bias=bias)
    gram.add(read)
    found.add(read, wanted.double()[None])
    return found


def test_the_ridge_is_what_its_formula_says():
    """One input: ``w = Σ x y / (Σ x² + λ Σ x²)``, a constant being free of the penalty."""
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [9.0]])
    assert float(sums_of(x, y).solve(1.0)) == pytest.approx(37 / 28)
    slope, constant = sums_of(x, y, bias=True).solve(1.0).flatten().tolist()
    assert slope == pytest.approx(7 / 4)  # Σ (x - 2)(y - 5) = 7 over Σ (x - 2)² = 2, twice
    assert constant == pytest.approx(5 - 2 * 7 / 4)


def test_the_error_from_sums_is_the_distance_from_the_rows():
    x, y = rows(20), rows(20, 3, seed=2)
    matrix = rows(8, 3, seed=3).double()
    expected = float((y.double() - x.double() @ matrix).square().sum())
    assert sums_of(x, y).error(matrix[None]) == pytest.approx(expected)


def test_what_other_rows_do_not_confirm_is_no_fit():
    assert fit(sums_of(rows(20), rows(20, seed=2)), sums_of(rows(20, seed=3), -100 * rows(20, seed=3))) is None
    assert fit(sums_of(rows(20), rows(20)), sums_of(rows(9, seed=3), rows(9, seed=3))).left < 0.01
    assert fit(sums_of(rows(20), 0 * rows(20)), sums_of(rows(9), 0 * rows(9))) is None


def test_the_strength_is_the_same_wherever_the_search_starts():
    draw = torch.Generator().manual_seed(5)
    x, noise = torch.randn(60, 8, generator=draw), torch.randn(60, 3, generator=draw)
    y = x @ rows(8, 3, seed=3) + 2 * noise
    expected = fit(sums_of(x[:20], y[:20]), sums_of(x[20:], y[20:]))
    assert STRENGTHS[0] > expected.strength > STRENGTHS[-1]
    for start in STRENGTHS:
        found = fit(sums_of(x[:20], y[:20]), sums_of(x[20:], y[20:]), start=start)
        assert found.strength == expected.strength
        assert torch.equal(found.matrix, expected.matrix)


def test_a_forward_that_writes_into_a_parameter_writes_into_a_copy():
    def forward(net, x):
        net.count.data.add_(1)
        x = net.stem(x)
        return net.head(torch.relu(x + net.branch(x))) + 0 * net.count

    model = randomised(Net(forward, count=parameter(1), stem=linear(), branch=linear(), head=linear()))
    pruned, edits = without(model, "branch", BATCHES[0])
    before = Photograph(model), pruned.count.detach().clone()
    assert repair(model, pruned, BATCHES, edits=edits).kept
    assert before[0] == Photograph(model)
    assert torch.equal(pruned.count, before[1])


# ---- what is kept, and what is left alone ---------------------------------------------------------------------------


def test_what_does_not_serve_held_out_data_is_not_kept():
    """On the last batch, on which strengths are chosen, the branch does the opposite of what it does on the others."""

    def forward(net, x, sign):
        x = net.stem(x)
        return net.head(x + net.branch(sign * x))

    parts = {name: nn.Linear(8, 8, bias=False) for name in ("stem", "branch", "head")}
    model = randomised(Net(forward, **parts))
    even = [torch.cat([x, -x]) for x in BATCHES]
    batches = [(x, torch.tensor(-1.0 if number == 3 else 1.0)) for number, x in enumerate(even)]
    pruned, edits = without(model, "branch", batches[0])
    before = Photograph(pruned)
    report = repair(model, pruned, batches, edits=edits)
    assert [(one.name, one.kept, one.left) for one in report.refitted] == [("stem", False, 1), ("head", False, 1)]
    assert not report.kept
    assert before == Photograph(pruned)
    assert "stays as it was" in report.notes[-1]


@pytest.mark.parametrize("after", [1.1, float("nan")])
def test_new_weights_that_make_the_output_worse_are_not_written(monkeypatch, after):
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    before = Photograph(pruned)
    monkeypatch.setattr(closed_form, "judge", lambda *_: RepairVerdict(1.0, after, "harm"))
    report = repair(model, pruned, BATCHES, edits=edits)
    assert not report.kept
    assert report.num_kept == 0
    assert before == Photograph(pruned)
    assert "stays as it was" in report.notes[-1]


def test_an_interrupt_leaves_the_unrepaired_model(monkeypatch):
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    before = Photograph(pruned)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(closed_form, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repair(model, pruned, BATCHES, edits=edits)
    assert before == Photograph(pruned)


def test_writing_is_all_or_nothing():
    model = branched()
    before = copy_of(model)
    with pytest.raises(RuntimeError):
        write(model, {"stem.weight": torch.zeros(8, 8), "head.weight": torch.zeros(3, 3)})
    assert same_bits(model, before)


def test_an_interrupt_while_weights_are_written_leaves_the_old_ones():
    class Interrupted(dict):
        def items(self):
            yield "stem.weight", torch.zeros(8, 8)
            raise KeyboardInterrupt

    model = branched()
    before = copy_of(model)
    with pytest.raises(KeyboardInterrupt):
        write(model, Interrupted())
    assert same_bits(model, before)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_weights_that_make_values_that_are_not_finite_are_an_error_about_the_batch(value):
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    with torch.no_grad():
        pruned.stem.bias[0] = value
    before = Photograph(pruned)
    with pytest.raises(CalibrationError, match="batch 0 of the calibration data makes 'stem' feed values that are not"):
        repair(model, pruned, BATCHES, edits=edits)
    assert before == Photograph(pruned)


def tiny_llama(num_layers, *, tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=num_layers, num_attention_heads=2,
        use_cache=False, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def test_a_tied_head_gets_a_weight_of_its_own_when_it_is_asked_for(tmp_path):
    model = tiny_llama(3, tied=True)
    draw = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 50, (8, 12), generator=draw)} for _ in range(4)]
    pruner = UniversalLayerPruner(model, example_inputs=batches[0], granularity="block")
    plan = pruner.plan(groups=["model.layers.1.mlp.down_proj"])
    pruned = plan.apply(model)
    refused = repair(model, copy_of(pruned), batches, edits=plan.edits).refused
    assert "untie" in refused["lm_head"]
    before = run(pruned, batches[0]["input_ids"]).logits
    assert untie(pruned) == ("lm_head.weight",)
    assert torch.equal(run(pruned, batches[0]["input_ids"]).logits, before)
    assert repair(model, pruned, batches, edits=plan.edits).kept
    assert not torch.equal(pruned.lm_head.weight, pruned.model.embed_tokens.weight)
    assert torch.equal(pruned.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    pruned.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    x = batches[0]["input_ids"]
    assert torch.equal(run(again, x).logits, run(pruned, x).logits)
    assert untie(pruned) == ()


def test_both_models_keep_modes_hooks_and_the_rng():
    model = branched(torch.relu).train()
    pruned, edits = without(model, "branch", BATCHES[0])
    pruned.head.register_forward_hook(lambda *_: None)
    original, rng = Photograph(model), torch.get_rng_state()
    modes = [module.training for module in pruned.modules()]
    report = repair(model, pruned, BATCHES, edits=edits)
    assert "hooks" in report.refused["head"]
    assert original == Photograph(model)
    assert torch.equal(rng, torch.get_rng_state())
    assert modes == [module.training for module in pruned.modules()]
    assert all(p.grad is None and p.requires_grad for p in pruned.parameters())


def test_tied_and_quantised_weights_are_refused_with_the_reason():
    def forward(net, x):
        x = net.stem(x)
        x = torch.relu(x + net.branch(x))
        return net.head(net.twice(torch.relu(net.twice(x)))) + torch.nn.functional.linear(x, net.head.weight)

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "branch", "twice", "head")}))
    graph = capture(model, as_inputs(BATCHES[0]))
    refused = find_sites(graph, graph, model)[1]
    assert "several times" in refused["twice"]
    assert "tied" in refused["head"]
    model.stem.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    assert "quantised" in find_sites(graph, graph, model)[1]["stem"]


def test_padding_counts_nowhere():
    def forward(net, x, attention_mask):
        x = net.stem(x)
        return net.head(torch.relu(x + net.branch(torch.tanh(x))))

    model = randomised(Net(forward, stem=linear(), branch=linear(), head=linear()))
    short, long = padded_and_not()
    pruned, edits = without(model, "branch", short[0])
    padded = copy_of(pruned)
    repair(model, pruned, short, edits=edits)
    repair(model, padded, long, edits=edits)
    assert close(padded.stem.weight, pruned.stem.weight, 1e-4)
    assert close(padded.head.weight, pruned.head.weight, 1e-4)


def test_one_batch_is_split():
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    report = repair(model, pruned, [torch.cat(BATCHES)], edits=edits)
    assert report.kept
    assert {one.num_rows for one in report.refitted} == {120}


def test_of_an_unpruned_model_nothing_is_repaired():
    model = branched(torch.relu)
    report = repair(model, copy_of(model), BATCHES)
    assert not report.kept
    assert "differs" in report.notes[0]


def test_few_rows_are_said():
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    report = repair(model, pruned, [rows(2, seed=seed) for seed in range(4)], edits=edits)
    assert any("8 inputs and was fitted on 6" in note for note in report.notes)


def test_transforms_with_too_few_rows_share_a_note():
    few = [
        Refitted(name=name, left=1.0, kept=False, strength=None, num_rows=rows, num_inputs=inputs)
        for name, rows, inputs in [("a", 6, 8), ("b", 6, 60), ("c", 64, 8), ("d", 0, 8)]
    ]
    assert about_rows(few[2:]) == []
    (note,) = about_rows(few)
    assert "'b' has 60 inputs and was fitted on 6 tokens or places, 1 more transform was fitted on too few" in note


def test_values_that_are_not_finite_are_an_error_about_the_batch():
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    before = Photograph(pruned)
    bad = BATCHES[1].clone()
    bad[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="batch 1 "):
        repair(model, pruned, [BATCHES[0], bad], edits=edits)
    with pytest.raises(CalibrationError, match="does not fit"):
        repair(model, pruned, [rows(4, 5)], edits=edits)
    with pytest.raises(CalibrationError, match="raised on batch 1 of the calibration data"):
        repair(model, pruned, [BATCHES[0], rows(4, 5)], edits=edits)
    with pytest.raises(CalibrationError, match="no batch"):
        repair(model, pruned, [], edits=edits)
    assert before == Photograph(pruned)


def test_the_report_prints_what_was_won_and_the_forwards_that_it_took():
    model = branched(torch.relu)
    pruned, edits = without(model, "branch", BATCHES[0])
    report = repair(model, pruned, read_items(), edits=edits)
    text = str(report)
    assert text.startswith(f"{report.num_kept} of {len(report.refitted)} transforms behind the gaps")
    assert "stem" in text
    assert "% left" in text
    assert report.num_forwards[0] == 1


def read_items():
    return iter([batch.item for batch in read_calibration(BATCHES, linear())])


def test_layers_that_were_renumbered_are_told_apart():
    model = tiny_llama(4, tied=False)
    draw = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 50, (4, 12), generator=draw)} for _ in range(4)]
    pruner = UniversalLayerPruner(model, example_inputs=batches[0], granularity="block")
    plan = pruner.plan(groups=["model.layers.1.mlp.down_proj"])
    assert any(edit.kind == "shorten" for edit in plan.edits)
    pruned = plan.apply(model)
    report = repair(model, pruned, batches, edits=plan.edits)
    assert report.kept
    assert report.after < report.before
    names = [one.name for one in report.refitted]
    assert names[0] == "model.layers.0.mlp.down_proj"  # the last to write before the gap
    assert "model.layers.1.self_attn.q_proj" in names  # the original's layer 2
    assert not any(name.startswith("model.layers.0.self_attn") for name in names)


def test_layers_that_were_renumbered_are_not_matched_by_position():
    model = tiny_llama(4, tied=False)
    batches = [{"input_ids": torch.arange(12).expand(4, 12)} for _ in range(4)]
    pruner = UniversalLayerPruner(model, example_inputs=batches[0], granularity="block")
    pruned = pruner.plan(groups=["model.layers.1.mlp.down_proj"]).apply(model)
    before = copy_of(pruned)
    with pytest.raises(RepairError, match=r"'model\.layers' has 3 of 4 layers left, under new numbers: give edits="):
        repair(model, pruned, batches)
    assert same_bits(pruned, before)


def test_layers_that_kept_their_numbers_need_no_edits():
    model = randomised(nn.Sequential(linear(), nn.Sequential(linear(), nn.ReLU(), linear()), linear()))
    pruned = copy_of(model)
    del pruned[1][2]
    assert repair(model, pruned, BATCHES).refitted


def test_a_dropped_tensor_stays_one_where_a_module_hands_it_on():
    """A shared module gets what a removed layer made: its dropout hands that on, and is recorded as it does."""

    def forward(net, x):
        x = net.stem(x)
        x = net.shared(x) + net.shared(net.branch(x))
        return net.head(torch.relu(x))

    shared = nn.Sequential(nn.Dropout(), nn.GroupNorm(2, 8), linear())
    model = randomised(Net(forward, stem=linear(), branch=linear(), shared=shared, head=linear()))
    pruned, edits = without(model, "branch", BATCHES[0])
    graph = capture(pruned, as_inputs(BATCHES[0]))
    assert "shared.2#1" not in {layer.name for layer in graph.layers}, "it is no layer, as nothing comes in"
    report = repair(model, pruned, BATCHES, edits=edits)
    assert report.kept
    assert report.after < 0.5 * report.before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_never_vary_can_be_fitted(dtype):
    """Of their variance only rounding is left: too little for a ridge to stand on."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        row = torch.randn(3, generator=draw).to(dtype)
        read = torch.cat([row, torch.ones(1, dtype=dtype)]).expand(1, 50, 4)
        wanted = torch.full((1, 50, 2), 0.37, dtype=dtype)
        gram = Gram(1, 3, device=read.device)
        gram.add(read)
        sums = Sums(gram, 2, bias=True)
        sums.add(read, wanted)
        for strength in STRENGTHS:
            made = read.double() @ sums.solve(strength)
            assert torch.allclose(made, wanted.double(), rtol=1e-3)
