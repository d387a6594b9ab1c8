"""Distillation: what a training wins, and that it leaves nothing half done behind, however it ends."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import layerprune
from layerprune import UniversalLayerPruner, distill
from layerprune.capture import read_calibration
from layerprune.checkpoint import write_record, write_tensors
from layerprune.distillation import Recipe
from layerprune.distillation.hidden_matching import find_matches, hidden_states_of
from layerprune.distillation.losses import distance, divergence, loss_of_values, top_logits
from layerprune.distillation.training_state import TrainingState
from layerprune.errors import CalibrationError, DistillationError
from layerprune.fidelity import compare
from models.nets import Net, Photograph, conv, copy_of, image, linear, randomised, rows, same_bits, tokens


class Branches(nn.Module):
    """Four residual branches, of which the pruned copy has three."""

    def __init__(self, num_branches=4):
        super().__init__()
        self.stem = linear()
        self.blocks = nn.ModuleList(linear() for _ in range(num_branches))
        self.head = linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(torch.tanh(x))
        return self.head(x)


def pair():
    original = randomised(Branches())
    pruner = UniversalLayerPruner(original, example_inputs=rows(4))
    return original, pruner.prune(groups=["blocks.1"])


BATCHES = [rows(16, seed=seed) for seed in range(12)]
OTHERS = [rows(64, seed=99)]
QUICK = {"num_epochs": 6, "learning_rate": 1e-2}


@torch.no_grad()
def error(model, original):
    """The squared relative distance of the outputs on other data, as the report has it."""
    return float((model(OTHERS[0]) - original(OTHERS[0])).square().sum() / original(OTHERS[0]).square().sum())


# ---- what it wins ----------------------------------------------------------------------------------------------------


def test_the_pruned_model_comes_nearer_to_the_original_on_data_that_it_has_not_seen():
    original, pruned = pair()
    before = error(pruned, original)
    keys = list(pruned.state_dict())
    report = distill(original, pruned, BATCHES, held_out=OTHERS, **QUICK)
    assert error(pruned, original) < 0.3 * before
    assert report.after < 0.3 * report.before
    assert report.num_steps == report.num_planned == 6 * len(BATCHES)
    assert report.stopped == "all steps were taken"
    assert list(pruned.state_dict()) == keys
    assert report.after == pytest.approx(error(pruned, original), rel=1e-4), (
        "what the report says is what the model does"
    )


def test_the_report_prints_itself():
    original, pruned = pair()
    text = str(distill(original, pruned, BATCHES, **QUICK))
    assert text.startswith("66 of 66 steps")  # one batch in six is held out of twelve, evenly
    assert "all steps were taken" in text
    assert "on held-out data" in text
    assert "loss: " in text
    assert "hidden states matched: blocks.0, blocks.2, blocks.3" in text


def test_both_models_stay_as_they_are_but_for_the_weights_that_are_trained():
    original, pruned = pair()
    original.train()
    pruned.head.weight.requires_grad_(False)
    pruned.register_buffer("counter", torch.zeros(1))
    before, of_pruned = Photograph(original), Photograph(pruned)
    assert distill(original, pruned, BATCHES, **QUICK).kept
    assert Photograph(original) == before
    after = Photograph(pruned)
    assert (after.modules, after.attributes, after.hooks, after.keys) == (
        of_pruned.modules,
        of_pruned.attributes,
        of_pruned.hooks,
        of_pruned.keys,
    )
    assert torch.equal(after.rng, of_pruned.rng)
    assert [n for n, (i, grad, _) in after.tensors.items() if of_pruned.tensors[n][:2] != (i, grad)] == []
    assert torch.equal(after.values["head.weight"], of_pruned.values["head.weight"]), "it does not ask for gradients"
    assert not torch.equal(after.values["stem.weight"], of_pruned.values["stem.weight"])
    assert all(parameter.grad is None for parameter in pruned.parameters())


def test_the_same_call_gives_the_same_bits_and_another_seed_others():
    first, again, other = (pair() for _ in range(3))
    torch.manual_seed(1)
    distill(*first, BATCHES, **QUICK)
    torch.manual_seed(2)
    distill(*again, BATCHES, **QUICK)
    distill(*other, BATCHES, seed=7, **QUICK)
    assert same_bits(first[1], again[1])
    assert not same_bits(first[1], other[1])


def test_a_model_that_does_not_come_nearer_stays_as_it_was():
    original, _ = pair()
    same = copy_of(original)
    before = Photograph(same)
    report = distill(original, same, BATCHES, **QUICK)
    assert report.before == pytest.approx(0, abs=1e-9)
    assert not report.kept
    assert report.num_steps < report.num_planned
    assert report.stopped == "no gain on the held-out data in 5 looks"
    assert Photograph(same) == before


def test_a_tensor_is_matched_with_what_its_readers_read_in_the_original():
    original, pruned = pair()
    (batch,) = read_calibration(BATCHES[:1], original)
    sides = hidden_states_of(original, batch, copied=False), hidden_states_of(pruned, batch, copied=True)
    matches = find_matches(*sides, (), None)
    assert [match.names for match in matches] == [("blocks.0",), ("blocks.2",), ("blocks.3",)]
    assert sum(match.weight for match in matches) == pytest.approx(1)
    sums = [layer.outputs[0] for layer in sides[0].graph.layers if layer.kind == "merge"]
    assert [match.teacher for match in matches] == sums[1:], "behind the gap it is the sum with the branch"
    (only,) = find_matches(*sides, (), {"blocks.2": 3.0})
    assert (only.names, only.weight) == (("blocks.2",), 1.0)
    with pytest.raises(DistillationError, match="fits no transform"):
        find_matches(*sides, (), {"encoder.*": 1.0})


def test_renumbered_layers_need_the_edits_which_a_plan_leaves_with_what_it_made():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, use_cache=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = LlamaForCausalLM(config).eval()
    data = [{"input_ids": torch.randint(12, (4, 6), generator=torch.Generator().manual_seed(n))} for n in range(4)]
    pruner = UniversalLayerPruner(original, example_inputs=data[0], granularity="block")
    pruned = pruner.prune(max_param_reduction=0.35)
    assert len(pruned.model.layers) == 2
    forgetful = LlamaForCausalLM(pruned.config).eval()  # as loaded from files that hold no plan
    forgetful.load_state_dict(pruned.state_dict())
    with pytest.raises(DistillationError, match=r"'model.layers' has 2 of 3 layers left, .* edits=plan.edits"):
        distill(original, forgetful, data, num_epochs=1)
    report = pruner.distill(data, num_epochs=4)
    assert report.after < report.before
    assert report.hidden


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_softmax_and_counts_no_padding():
    one, other = torch.tensor([[[0.0, math.log(3)], [5.0, 0.0]]]), torch.tensor([[[math.log(3), 0.0], [0.0, 9.0]]])
    mask = torch.tensor([[1, 0]])
    assert divergence(other, one, mask).item() == pytest.approx(math.log(3) / 2)
    p, q = F.log_softmax(one / 2, -1), F.log_softmax(other / 2, -1)
    by_hand = F.kl_div(q.flatten(0, 1), p.flatten(0, 1), log_target=True, reduction="batchmean")
    assert divergence(other, one, None, 2.0).item() == pytest.approx(by_hand.item())


def test_with_the_likeliest_tokens_the_others_are_taken_together():
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]])
    found = top_logits(logits, 2, 1.0)
    p = logits.softmax(-1)[0, 0]
    assert found.classes.tolist() == [[[0, 1]]]
    assert found.log_probs.exp()[0, 0].tolist() == pytest.approx([float(p[0]), float(p[1]), float(p[2] + p[3])])
    student = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]], requires_grad=True)
    q = student.softmax(-1)[0, 0].detach()
    coarse = [(p[0], q[0]), (p[1], q[1]), (p[2] + p[3], q[2] + q[3])]
    loss = divergence(student, found, None)
    assert loss.item() == pytest.approx(float(sum(a * (a / b).log() for a, b in coarse)))
    assert loss.item() < divergence(student, logits, None).item()
    loss.backward()
    assert bool(student.grad.isfinite().all())


def test_distances_are_relative_and_count_no_padding():
    wanted, mask = torch.ones(1, 2, 4), torch.tensor([[1, 0]])
    found = torch.stack([torch.full((4,), 1.5), torch.full((4,), 99.0)])[None]
    assert distance(found, wanted, mask).item() == pytest.approx(0.25)
    assert loss_of_values(found, wanted, mask).item() == pytest.approx(0.25)
    assert loss_of_values(-found, wanted, mask).item() == pytest.approx(2.5**2 + 2)
    assert distance(torch.ones(3, 4), torch.zeros(3, 4), None).item() == pytest.approx(1)


class Tagger(nn.Module):
    """Logits over twelve tokens, from states of eight."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = linear(), linear(), linear(), linear(8, 12)

    def forward(self, x, attention_mask=None):
        x = self.stem(x)
        x = x + torch.tanh(self.a(x))
        return {"logits": self.head(x + torch.tanh(self.b(x)))}


def tagged(seed):
    return {
        "x": tokens(4, 6, seed=seed),
        "attention_mask": torch.tensor([[1] * 5 + [0], [1] * 6, [1] * 6, [1] * 3 + [0] * 3]),
    }


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0}, {"top_k": 3}, {"hidden_weight": 0.0}])
def test_a_language_model_learns_from_logits_and_from_the_likeliest_tokens(settings):
    original = randomised(Tagger())
    data = [tagged(seed) for seed in range(12)]
    pruned = UniversalLayerPruner(original, example_inputs=data[0]).prune(groups=["a"])
    report = distill(original, pruned, data, learning_rate=1e-2, num_epochs=8, **settings)
    assert report.unit.startswith("KL divergence")
    assert report.after < 0.5 * report.before


def test_what_is_padded_away_changes_nothing():
    original = randomised(Tagger())
    found = []
    for filler in (0.0, 50.0):
        data = [tagged(seed) for seed in range(6)]
        for batch in data:
            batch["x"] = torch.where(batch["attention_mask"][..., None].bool(), batch["x"], torch.tensor(filler))
        pruned = UniversalLayerPruner(original, example_inputs=tagged(0)).prune(groups=["a"])
        distill(original, pruned, data, num_epochs=1)
        found.append(pruned)
    for one, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


# ---- the teacher's results -------------------------------------------------------------------------------------------


def test_kept_in_memory_in_files_or_computed_again_the_lessons_give_the_same_bits(tmp_path):
    found = []
    for options in ({}, {"cache_bytes": 0}, {"cache_bytes": 0, "cache_folder": tmp_path}):
        original, pruned = pair()
        calls = []
        original.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        report = distill(original, pruned, BATCHES, **QUICK, **options)
        found.append((pruned, report, len(calls)))
    (memory, _, few), (again, said, many), (files, quiet, as_few) = found
    assert same_bits(memory, again)
    assert same_bits(memory, files)
    assert few == as_few < 20 < 72 < many
    assert "of 12 batches did not fit into cache_bytes" in said.notes[0]
    assert quiet.notes == ()
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors"}


def test_files_of_lessons_serve_the_next_run(tmp_path):
    counts = []
    for _ in range(2):
        original, pruned = pair()
        calls = []
        original.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        distill(original, pruned, BATCHES, cache_bytes=0, cache_folder=tmp_path, **QUICK)
        counts.append(len(calls))
    assert counts[0] == counts[1] + len(BATCHES), "each batch once, and what it takes to record the model"
    assert counts[1] < len(BATCHES)


# ---- LoRA ------------------------------------------------------------------------------------------------------------


def test_adapters_are_added_to_the_weights_and_leave_nothing_else():
    original, pruned = pair()
    before = {name: p.detach().clone() for name, p in pruned.named_parameters()}
    modules = [(name, type(module)) for name, module in pruned.named_modules()]
    start = error(pruned, original)
    report = distill(original, pruned, BATCHES, held_out=OTHERS, lora_rank=2, **QUICK)
    assert [(name, type(module)) for name, module in pruned.named_modules()] == modules
    assert error(pruned, original) < 0.7 * start
    assert error(pruned, original) == pytest.approx(report.after, rel=1e-3)
    for name, parameter in pruned.named_parameters():
        change = parameter.detach() - before[name]
        if name.endswith("bias"):
            assert not change.any()
        else:
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= 2, name
    assert report.num_trained == 2 * sum(sum(p.shape) for n, p in before.items() if n.endswith("weight"))


class Pictures(nn.Module):
    """Three residual convolutions with batch norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = conv(3, 4), nn.Linear(4, 5)
        self.blocks = nn.ModuleList(nn.Sequential(conv(), nn.BatchNorm2d(4)) for _ in range(3))
        self.num_classes = 5

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(torch.relu(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("lora_rank", [0, 1])
def test_a_classifier_with_batch_norms_keeps_their_statistics(lora_rank):
    original = randomised(Pictures()).train()
    data = [image(8, seed=seed) for seed in range(8)]
    pruned = UniversalLayerPruner(original, example_inputs=data[0]).prune(groups=["blocks.1.0"])
    buffers = {name: tensor.clone() for name, tensor in pruned.named_buffers()}
    report = distill(original, pruned, data, num_epochs=6, learning_rate=1e-2, lora_rank=lora_rank)
    assert report.unit.startswith("KL divergence")
    assert report.after < 0.7 * report.before
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in pruned.named_buffers())
    assert pruned.training
    found = compare(original, pruned, [data[place] for place in (4,)])
    assert found.kl.value == pytest.approx(report.after, rel=1e-3), "one batch in eight is held out, in the middle"


# ---- ends ------------------------------------------------------------------------------------------------------------


class Poisoned(Branches):
    """Returns NaN from its n-th training forward on."""

    healthy = 10**9

    def forward(self, x):
        out = super().forward(x)
        if torch.is_grad_enabled():
            Poisoned.healthy -= 1
            if Poisoned.healthy < 0:
                return out * float("nan")
        return out


def poisoned(healthy):
    original, pruned = pair()
    pruned.__class__ = Poisoned
    Poisoned.healthy = healthy
    return original, pruned


def test_a_loss_that_is_not_finite_stops_it_with_the_best_weights(monkeypatch):
    original, pruned = poisoned(40)
    report = distill(original, pruned, BATCHES, held_out=OTHERS, **QUICK)
    assert report.stopped == "the loss diverged at step 41"
    assert report.kept
    assert report.after < report.before
    monkeypatch.setattr(Poisoned, "healthy", 10**9)
    assert error(pruned, original) == pytest.approx(report.after, rel=1e-3)


def test_a_loss_that_is_never_finite_leaves_the_model_as_it_was():
    original, pruned = poisoned(0)
    before = Photograph(pruned)
    report = distill(original, pruned, BATCHES, **QUICK)
    assert report.stopped == "the loss diverged at step 1"
    assert not report.kept
    assert Photograph(pruned) == before


def test_a_loss_that_rises_far_above_its_start_stops_it():
    original, pruned = pair()
    start = error(pruned, original)
    report = distill(original, pruned, BATCHES, held_out=OTHERS, num_epochs=20, learning_rate=3.0, patience=99)
    assert report.stopped.startswith("the loss diverged")
    assert error(pruned, original) <= start
    course = TrainingState(losses=[1.0] * 10 + [11.0] * 10)
    assert course.has_diverged()
    assert not TrainingState(losses=[1.0] * 10 + [9.0] * 10).has_diverged()


def interrupt(model, step):
    """Let the forward of a training step raise; returns the hook."""
    left = [step]

    def count(_module, _args):
        left[0] -= torch.is_grad_enabled()
        if left[0] == 0:
            left[0] = -1
            raise KeyboardInterrupt

    return model.register_forward_pre_hook(count)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_an_interrupt_leaves_the_best_so_far_and_the_same_call_goes_on_from_there(tmp_path, lora_rank):
    settings = {**QUICK, "lora_rank": lora_rank}
    _, whole = pair()
    original, pruned = pair()
    distill(original, whole, BATCHES, held_out=OTHERS, **settings)
    start = error(pruned, original)
    hook = interrupt(pruned, 40)
    with pytest.raises(KeyboardInterrupt):
        distill(original, pruned, BATCHES, held_out=OTHERS, checkpoint=tmp_path, **settings)
    hook.remove()
    assert error(pruned, original) < start
    assert not same_bits(pruned, whole)
    report = distill(original, pruned, BATCHES, held_out=OTHERS, checkpoint=tmp_path, **settings)
    assert same_bits(pruned, whole)
    assert report.num_steps == report.num_planned
    assert f"went on from step 36, from {tmp_path}" in report.notes


def test_an_interrupt_before_the_first_look_leaves_the_unrepaired_model():
    original, pruned = pair()
    interrupt(pruned, 3)
    before = Photograph(pruned)
    with pytest.raises(KeyboardInterrupt):
        distill(original, pruned, BATCHES, **QUICK)
    assert Photograph(pruned) == before


# ---- checkpoints -----------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from layerprune import distill
from test_distillation import BATCHES, OTHERS, QUICK, Branches, pair

left = 40

def kill(_module, _args):
    global left
    left -= torch.is_grad_enabled()
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

original, pruned = pair()
pruned.register_forward_pre_hook(kill)
distill(original, pruned, BATCHES, held_out=OTHERS, checkpoint=sys.argv[1], **QUICK)
"""


def test_a_run_that_was_killed_goes_on_to_the_weights_of_one_that_was_not(tmp_path):
    paths = os.pathsep.join(map(str, [*Path(__file__).parents[:2], Path(layerprune.__file__).parents[1]]))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert len(json.loads((folder / "training.json").read_text())["course"]["losses"]) == 36
    original, pruned = pair()
    _, whole = pair()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = distill(original, pruned, BATCHES, held_out=OTHERS, checkpoint=folder, **QUICK)
        distill(original, whole, BATCHES, held_out=OTHERS, **QUICK)
    finally:
        torch.set_num_threads(threads)
    assert same_bits(whole, pruned)
    assert report.num_steps == 72


def test_a_training_that_has_ended_is_not_run_again(tmp_path):
    original, pruned = pair()
    first = distill(original, pruned, BATCHES, checkpoint=tmp_path, **QUICK)
    weights = copy_of(pruned)
    again = distill(original, pruned, BATCHES, checkpoint=tmp_path, **QUICK)
    assert same_bits(pruned, weights)
    assert (again.losses, again.looks, again.stopped) == (first.losses, first.looks, first.stopped)
    _, fresh = pair()
    distill(original, fresh, BATCHES, checkpoint=tmp_path, **QUICK)
    assert same_bits(fresh, weights)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 1e-3}, "recipe"),
        ({"data": BATCHES[1:]}, "the data"),
        ({"held_out": BATCHES[:2]}, "the held-out batches"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, change, says):
    original, pruned = pair()
    distill(original, pruned, BATCHES, checkpoint=tmp_path, **QUICK)
    options = {"data": BATCHES, **QUICK, **change}
    with pytest.raises(DistillationError, match=f"is of another training .*{says}"):
        distill(original, pruned, options.pop("data"), checkpoint=tmp_path, **options)
    with torch.no_grad():
        pruned.stem.weight.add_(1)
    with pytest.raises(DistillationError, match="the pruned model's weights"):
        distill(original, pruned, BATCHES, checkpoint=tmp_path, **QUICK)


def test_a_checkpoint_that_cannot_be_read_is_an_error_that_says_what_to_do(tmp_path):
    original, pruned = pair()
    distill(original, pruned, BATCHES, checkpoint=tmp_path, **QUICK)
    (tensors,) = tmp_path.glob("step-*.safetensors")
    tensors.write_bytes(b"short")
    with pytest.raises(DistillationError, match=r"cannot be read .*remove the folder"):
        distill(original, pruned, BATCHES, checkpoint=tmp_path, **QUICK)
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(DistillationError, match=r"cannot be read .*remove the folder"):
        distill(original, pruned, BATCHES, checkpoint=tmp_path, **QUICK)


def test_a_folder_with_other_files_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    original, pruned = pair()
    with pytest.raises(DistillationError, match="holds other files"):
        distill(original, pruned, BATCHES, checkpoint=tmp_path, **QUICK)


def test_views_of_one_memory_are_written_each_for_itself(tmp_path):
    whole = torch.arange(6.0)
    given = {"whole": whole, "rows": whole.view(2, 3), "part": whole[2:4], "column": whole.view(2, 3)[:, 1]}
    write_tensors(tmp_path / "t.safetensors", given)
    read = load_file(tmp_path / "t.safetensors")
    assert {name: tensor.tolist() for name, tensor in read.items()} == {n: t.tolist() for n, t in given.items()}


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "training.json"
    write_record(path, {"step": 1})

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_record(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"learning_rate": 0}, "learning_rate=0 is no good"),
        ({"epochs": 3}, "there is no setting 'epochs'; there are num_epochs"),
        ({"mixed_precision": "fp8"}, "mixed_precision='fp8' is no good"),
        ({"mixed_precision": "fp16"}, "mixed_precision='fp16': accelerate has none on cpu"),
        ({"output_weight": 0, "hidden_weight": 0}, "nothing to learn from"),
        ({"temperature": float("nan")}, "temperature=nan is no good"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    original, pruned = pair()
    with pytest.raises(DistillationError, match=says):
        distill(original, pruned, BATCHES, **settings)


def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch):
    original, pruned = pair()
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(DistillationError, match=r"needs accelerate; run: pip install accelerate peft"):
        distill(original, pruned, BATCHES)


def test_models_and_data_that_do_not_fit_are_refused():
    original, pruned = pair()
    with pytest.raises(DistillationError, match=r"returns \(16, 3\) where the original returns \(16, 5\)"):
        distill(original, randomised(nn.Sequential(linear(8, 3))), BATCHES)
    with pytest.raises(DistillationError, match="no parameter of the pruned model asks for gradients"):
        distill(original, pair()[1].requires_grad_(False), BATCHES)
    with pytest.raises(CalibrationError, match="no batch"):
        distill(original, pruned, [])
    with pytest.raises(CalibrationError, match="not finite of batch 3"):
        distill(original, pruned, [*BATCHES[:3], BATCHES[3] * float("inf")])
    with pytest.raises(DistillationError, match="original and pruned are one model"):
        distill(original, original, BATCHES)
    with pytest.raises(DistillationError, match="one that computes"):
        distill(original, copy_of(pruned).to("meta"), BATCHES)
    whole = Net(lambda net, x: net.a(x).long(), a=linear())
    with pytest.raises(DistillationError, match="nothing to learn from"):
        distill(whole, copy_of(whole), BATCHES)


def test_bfloat16_trains_too_and_accelerates_state_stays_the_users():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    own = Accelerator(cpu=True)
    try:
        original, pruned = pair()
        report = distill(original, pruned, BATCHES, mixed_precision="bf16", **QUICK)
        assert report.after < 0.5 * report.before
        assert own.mixed_precision == "no"
        assert AcceleratorState().mixed_precision == "no"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_to_nothing():
    recipe = Recipe(learning_rate=1.0)
    assert [recipe.rate(step, 100) for step in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])
    assert recipe.rate(55, 100) == pytest.approx(0.5)
    assert recipe.rate(99, 100) < 0.001
    assert 0 < recipe.rate(0, 1) <= 1
