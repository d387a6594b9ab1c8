"""The last quarter of the calibration data takes part in no fit, and says what is kept of the output."""

import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.capture import read_calibration
from layerprune.fidelity import Divergence, HeldOut, HeldOutVerdict, compare, held_by, hold_out, hold_out_of
from models.nets import Damped, Net, linear, randomised, rows, same_bits

BATCHES = [rows(32, seed=seed) for seed in range(8)]
OTHERS = [*BATCHES[:6], *(rows(32, seed=seed) * 3 for seed in (50, 51))]


def net():
    return randomised(nn.Sequential(linear(), Damped(), linear()))


def chain():
    """A group that leaves by a projection only, and one that leaves as it is."""
    return randomised(
        nn.Sequential(linear(8, 6), nn.Tanh(), linear(6, 9), nn.Tanh(), linear(9, 9), nn.Tanh(), linear(9, 2))
    )


def made(model, batches, group, **options):
    pruner = UniversalLayerPruner(model, calibration=batches, **options)
    return pruner, pruner.prune(groups=[group])


# ---- what is held out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "kept", "held"),
    [
        ([4] * 8, [4] * 6, [4] * 2),
        ([4] * 5, [4] * 4, [4]),
        ([32], [24], [8]),
        ([16, 16], [16, 8], [8]),
        ([8, 8, 2], [8, 6], [2, 2]),
        ([1], [1], []),
        ([2], [2], []),
    ],
)
def test_a_quarter_is_held_out_in_whole_batches_or_in_samples_where_these_are_few(sizes, kept, held):
    batches = read_calibration([rows(size, seed=size) for size in sizes], net())
    parts = hold_out(batches)
    assert [[batch.num_samples for batch in part] for part in parts] == [kept, held]
    whole = torch.cat([batch.inputs.args[0] for part in parts for batch in part])
    assert torch.equal(whole, torch.cat([batch.inputs.args[0] for batch in batches])), "nothing is lost or doubled"


@pytest.mark.parametrize("repair", ["auto", "mean"])
@pytest.mark.parametrize(("build", "group"), [(net, "1.blocks.1"), (chain, "2")])
def test_no_weight_depends_on_the_held_out_quarter(build, group, repair):
    model = build()
    plan = UniversalLayerPruner(model, calibration=BATCHES).plan(groups=[group])
    one, other = (
        UniversalLayerPruner(model, calibration=data).prune(plan=plan, repair=repair) for data in (BATCHES, OTHERS)
    )
    assert same_bits(one, other)


# ---- the verdict ---------------------------------------------------------------------------------------------------


def test_the_verdict_is_the_harm_of_the_model_that_comes_out_on_the_held_out_quarter():
    model = net()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    unrepaired = pruner.prune(groups=["1.blocks.1"], repair=None)
    assert pruner.repair_report is None
    pruned = pruner.prune(groups=["1.blocks.1"])
    verdict = pruner.repair_report.verdict
    x = torch.cat(BATCHES[6:])
    for held, one in ((verdict.after, pruned), (verdict.before, unrepaired)):
        with torch.no_grad():
            pairs = [(model(batch), one(batch)) for batch in BATCHES[6:]]
        expected = sum(float((b - a).square().sum() / a.square().sum()) for a, b in pairs) / 2
        assert held.divergence == pytest.approx(expected, rel=1e-5)
        assert held.kept == pytest.approx(max(0.0, 1 - expected), rel=1e-5)
    assert (verdict.after.num_samples, verdict.num_fitted) == (len(x), 192)
    assert verdict.after.divergence < verdict.before.divergence
    text = str(pruner.repair_report)
    assert f"Held-out verdict: {verdict.after.kept:.1%} of the output is kept ({verdict.before.kept:.1%}" in text
    assert "on 64 samples that no weight was fitted on (192 were)" in text


@pytest.mark.parametrize(("build", "group", "repair"), [(net, "1.blocks.1", "auto"), (chain, "2", None)])
def test_a_printed_plan_shows_the_verdict_once_it_is_carried_out_and_that_of_no_other(build, group, repair, capsys):
    pruner = UniversalLayerPruner(build(), calibration=BATCHES)
    plan = pruner.plan(groups=[group])
    pruner.print_plan(plan, width=200)
    assert "Held-out" not in capsys.readouterr().out
    pruner.prune(plan=plan, repair=repair)
    report = pruner.repair_report or pruner.projection_report
    pruner.print_plan(plan, width=200)
    assert f"\n{report.verdict}\n" in capsys.readouterr().out
    pruner.prune(groups=pruner.removals[-1] if pruner.removals[-1].groups != (group,) else pruner.removals[0])
    pruner.print_plan(plan, width=200)
    assert "Held-out" not in capsys.readouterr().out


def test_of_a_distribution_it_says_how_many_predictions_keep_their_class():
    model = net()
    pruner, pruned = made(model, BATCHES, "1.blocks.1", kind="distribution")
    verdict, same = pruner.repair_report.verdict, compare(model, pruned, BATCHES[6:], kind="distribution")
    assert verdict.after.kept == pytest.approx(same.top1_agreement.value)
    assert verdict.after.divergence == pytest.approx(same.kl.value, rel=1e-4)
    assert "of the predictions keep their class" in str(pruner.repair_report)


def test_padding_does_not_count():
    model = Net(lambda net, x, attention_mask: net.layer(x), layer=linear())
    other = Net(
        lambda net, x, attention_mask: net.layer(x) * (1 + 9 * (1 - attention_mask[..., None])), layer=model.layer
    )
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    batches = read_calibration([{"x": rows(8).reshape(2, 4, 8), "attention_mask": mask}], model)
    for kind in ("values", "distribution"):
        found = held_by(model, other, batches, Divergence(kind))
        assert (found.divergence, found.kept) == (0.0, 1.0)


def test_a_projection_that_is_not_repaired_is_judged_too():
    pruner = UniversalLayerPruner(chain(), calibration=BATCHES)
    pruner.prune(groups=["2"], repair=None)
    verdict = pruner.projection_report.verdict
    assert verdict.before == verdict.after
    assert "Held-out verdict: " in str(pruner.projection_report)
    assert "unrepaired" not in str(verdict)


def test_where_data_are_plenty_a_quarter_less_costs_little():
    model, truth = net(), rows(2048, seed=99)
    errors = []
    for num in (6, 8):
        _, pruned = made(model, BATCHES[:num], "1.blocks.1")
        with torch.no_grad():
            errors.append(float((pruned(truth) - model(truth)).square().mean()))
    assert errors[0] < 1.1 * errors[1]


# ---- what is said --------------------------------------------------------------------------------------------------


def test_few_held_out_samples_are_said_to_be_few():
    pruner, _ = made(net(), [rows(6, seed=seed) for seed in range(4)], "1.blocks.1")
    assert any("rests on 6 samples, which are few" in note for note in pruner.repair_report.notes)
    pruner, _ = made(net(), BATCHES, "1.blocks.1")
    assert not any("few" in note for note in pruner.repair_report.notes)


def test_data_that_cannot_be_cut_give_no_verdict_and_the_report_says_so():
    model = net()
    pruner = UniversalLayerPruner(model, calibration=[rows(1)])
    pruner.prune(groups=["1.blocks.1"])
    assert pruner.repair_report.verdict is None
    assert any("no held-out verdict" in note for note in pruner.repair_report.notes)


def test_a_batch_stays_whole_where_the_model_takes_no_part_of_it():
    model = Net(lambda net, x: net.rest(x.reshape(32, 8)), rest=net())
    batches = read_calibration([rows(32)], model)
    kept, held = hold_out_of(model, batches)
    assert (kept, held) == (batches, ())


def test_a_repair_that_is_worse_on_held_out_data_and_an_output_that_is_no_number_are_said():
    good, bad = (
        HeldOut(
            divergence=harm,
            kept=1 - harm,
            kind="values",
            unit="squared relative L2 change of the output",
            num_samples=64,
        )
        for harm in (0.1, 0.4)
    )
    assert "worse than without the repair" in HeldOutVerdict(good, bad, 192).notes[0]
    assert HeldOutVerdict(bad, good, 192).notes == ()
    lost = HeldOut(divergence=float("nan"), kept=0.0, kind="values", unit="", num_samples=64)
    assert "not known" in str(HeldOutVerdict(good, lost, 192))
