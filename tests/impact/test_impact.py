"""Impact: what the criteria say of removals, against answers by hand and against making them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.capture import read_calibration
from layerprune.errors import CalibrationError, UnknownNameError
from layerprune.impact import ImpactScores, ScoringContext, register_criterion, score_output_change
from layerprune.impact.ablation import score_ablation
from layerprune.impact.estimators.influence import score_influence
from layerprune.impact.estimators.magnitude import score_magnitude
from models.nets import Net, conv, copy_of, image, linear, parameter, randomised, rows, same_bits, tokens


def scene_of(model, batches, **options):
    pruner = UniversalLayerPruner(model, example_inputs=batches[0])
    return ScoringContext(
        model=model, graph=pruner.graph, removals=pruner.removals, batches=read_calibration(batches, model), **options
    ), pruner


def branches(activation=lambda x: x):
    """Three residual branches of different weight; without an activation all of it is linear."""

    def forward(net, x):
        x = net.stem(x)
        for branch in (net.a, net.b, net.c):
            x = x + activation(branch(x))
        return net.head(x)

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "c", "head")})).double()
    with torch.no_grad():
        for name, scale in (("a", 0.1), ("b", 1.0), ("c", 0.3)):
            for p in getattr(model, name).parameters():
                p.mul_(scale)
    return model


def by_making(pruner, batches):
    """Squared relative L2 change of the output for each removal, of all batches taken as one, from pruned copies."""
    found = []
    for removal in pruner.removals:
        change = size = 0.0
        plan = pruner._planner.of([pruner.removals.index(removal)], ())
        pruned = plan.apply(pruner._original)
        for batch in batches:
            out, original = pruned(batch), pruner._original(batch)
            change += batch.shape[0] * float((out - original).square().sum() / original.square().sum())
            size += batch.shape[0]
        found.append(change / size)
    return found


BATCHES = [rows(6, seed=seed).double() for seed in (1, 2, 3)]


def test_ablation_is_the_change_that_the_pruned_model_shows():
    scene, pruner = scene_of(branches(torch.tanh), BATCHES)
    found = score_ablation(scene)
    with torch.no_grad():
        assert found.impacts == pytest.approx(by_making(pruner, BATCHES))
    assert found.unit.startswith("squared relative L2 change of the output")


def test_the_estimate_adds_squares_of_what_each_element_moves():
    model = branches()
    scene, pruner = scene_of(model, BATCHES[:1])
    index = [removal.groups for removal in pruner.removals].index(("c",))
    with torch.no_grad():
        x = model.stem(BATCHES[0])
        x = x + model.a(x)
        x = x + model.b(x)
        step = model.c(x)
        columns = model.head.weight.square().sum(0)  # how far each element moves the output, squared
        truth = float((columns * step.square()).sum() / model.head(x + step).square().sum())
    assert score_output_change(scene, num_directions=400).impacts[index] == pytest.approx(truth, rel=0.1)


def test_where_each_element_moves_an_output_of_its_own_the_estimate_is_the_truth():
    def forward(net, x):
        x = net.stem(x)
        return 3.0 * (x + net.a(x) + net.b(x) + net.c(x))

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "c")})).double()
    scene, pruner = scene_of(model, BATCHES)
    with torch.no_grad():
        truth = by_making(pruner, BATCHES)
    drops = [i for i, r in enumerate(pruner.removals) if r.kind == "branch"]
    found = score_output_change(scene, num_directions=400).impacts
    assert len(drops) == 3
    assert [found[i] for i in drops] == pytest.approx([truth[i] for i in drops], rel=0.1)


def test_the_estimate_of_a_pair_knows_whether_two_changes_add_or_cancel():
    def forward(net, x):
        y = net.stem(x)
        return y + net.a(y) + net.b(y) + net.c(y)

    model = Net(forward, **{name: linear() for name in ("stem", "a", "b", "c")}).double().eval()
    weights = {"stem": 1.0, "a": 0.5, "b": -2.0, "c": 1.0}
    with torch.no_grad():
        for name, weight in weights.items():
            getattr(model, name).weight.copy_(weight * torch.eye(8))
            getattr(model, name).bias.zero_()
    scene, pruner = scene_of(model, BATCHES)
    found = score_output_change(scene, num_directions=200)
    names = [removal.groups for removal in pruner.removals]
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        i, j = names.index((first,)), names.index((second,))
        together = found.impacts[i] + found.impacts[j] + 2 * found.pairs[i, j]
        whole = sum(weights.values())
        assert together == pytest.approx(((weights[first] + weights[second]) / whole) ** 2, rel=0.1)
    assert (found.pairs == found.pairs.T).all()
    assert not found.pairs.diagonal().any()


def test_a_lost_operand_of_a_concat_counts_at_its_place():
    def forward(net, x):
        x = net.stem(x)
        return net.head(torch.cat([net.a(x), net.b(x), net.c(x)], 1))

    parts = {"a": conv(4, 2), "b": conv(4, 3), "c": conv(4, 5), "stem": conv(3, 4), "head": conv(10, 10, 1)}
    model = randomised(Net(forward, **parts)).double()
    nn.init.orthogonal_(model.head.weight)  # so that elements move the output at right angles
    batches = [image(4, seed=seed).double() for seed in (1, 2)]
    scene, pruner = scene_of(model, batches)
    drops = [i for i, r in enumerate(pruner.removals) if r.cut.dropped]
    assert drops
    with torch.no_grad():
        truth = by_making(pruner, batches)
    estimate = score_output_change(scene, num_directions=300).impacts
    assert [estimate[i] for i in drops] == pytest.approx([truth[i] for i in drops], rel=0.1)


class Classifier(nn.Module):
    """Names its classes, so that its output is a distribution's logits."""

    def __init__(self):
        super().__init__()
        self.num_classes = 5
        self.stem, self.a, self.b, self.head = linear(), linear(), linear(), linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + 0.02 * torch.tanh(self.a(x))
        return self.head(x + 0.05 * torch.tanh(self.b(x)))


def test_of_a_classifier_the_impact_is_the_divergence_of_its_predictions():
    model = randomised(Classifier()).double()
    batches = [rows(64, seed=seed).double() for seed in (1, 2)]
    scene, pruner = scene_of(model, batches)
    found = score_ablation(scene)
    assert found.unit.startswith("KL divergence")
    with torch.no_grad():
        for i in range(len(pruner.removals)):
            pruned = pruner._planner.of([i], ()).apply(model)
            truth = [
                F.kl_div(pruned(x).log_softmax(1), model(x).log_softmax(1), log_target=True, reduction="sum")
                for x in batches
            ]
            assert found.impacts[i] == pytest.approx(float(sum(truth)) / 128, rel=1e-4)


def test_of_a_classifier_the_estimate_is_half_the_variance_of_what_each_element_moves():
    model = randomised(Classifier()).double()
    batches = [rows(64, seed=seed).double() for seed in (1, 2)]
    scene, pruner = scene_of(model, batches)
    index = next(i for i, r in enumerate(pruner.removals) if r.groups == ("b",) and r.kind == "branch")
    truth = 0.0
    with torch.no_grad():
        for batch in batches:
            x = model.stem(batch)
            x = x + 0.02 * torch.tanh(model.a(x))
            step = 0.05 * torch.tanh(model.b(x))
            p = model.head(x + step).softmax(1)
            mean = p @ model.head.weight
            variance = p @ model.head.weight.square() - mean.square()  # of a class's gradient, classes drawn from p
            truth += float((variance * step.square()).sum()) / 2 / 128
    assert score_output_change(scene, num_directions=100).impacts[index] == pytest.approx(truth, rel=0.1)


def test_padding_does_not_count():
    def forward(net, x, attention_mask):
        x = net.stem(x)
        x = x + net.a(torch.relu(net.b(x)))
        return net.head(x + net.c(x))

    parts = {name: linear() for name in ("stem", "a", "b", "c", "head")}
    model = randomised(Net(forward, **parts)).double()
    x = tokens(4, 5).double()
    padded = torch.cat([x, 100 * tokens(4, 3, seed=2).double()], 1)
    short = {"x": x, "attention_mask": torch.ones(4, 5, dtype=torch.long)}
    long = {"x": padded, "attention_mask": torch.tensor([[1] * 5 + [0] * 3] * 4)}
    for criterion in (score_ablation, score_influence):
        impacts = [criterion(scene_of(model, [batch])[0]).impacts for batch in (short, long)]
        assert impacts[0] == pytest.approx(impacts[1])
    estimates = [
        score_output_change(scene_of(model, [batch])[0], num_directions=200).impacts for batch in (short, long)
    ]
    assert estimates[0] == pytest.approx(estimates[1], rel=0.15)


@pytest.mark.parametrize("criterion", [score_ablation, score_output_change, score_influence, score_magnitude])
def test_a_criterion_leaves_the_model_and_repeats_itself(criterion):
    model = branches(torch.tanh).train()
    model.a.weight.requires_grad_(False)
    before, seen = copy_of(model), torch.get_rng_state()
    scene, _ = scene_of(model, BATCHES)
    first, second = criterion(scene), criterion(scene)
    assert first.impacts.tolist() == second.impacts.tolist()
    assert not any(math.isnan(impact) for impact in first.impacts)
    assert torch.equal(seen, torch.get_rng_state())
    assert model.training
    assert same_bits(model, before)
    assert not model.a.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_magnitude_is_the_share_of_the_norm():
    scene, pruner = scene_of(branches(), BATCHES)
    total = sum(float(p.detach().square().sum()) for p in scene.model.parameters())
    own = {n: sum(float(p.detach().square().sum()) for p in getattr(scene.model, n).parameters()) for n in "abc"}
    for removal, impact in zip(pruner.removals, score_magnitude(scene).impacts, strict=True):
        assert impact == pytest.approx(math.sqrt(sum(own[name] for name in removal.groups) / total), rel=1e-5)


@pytest.mark.parametrize("criterion", [score_ablation, score_output_change, score_influence, score_magnitude])
def test_of_no_removals_there_is_nothing_to_say(criterion):
    scene, _ = scene_of(branches(), BATCHES)
    found = criterion(replace(scene, removals=[]))
    assert found.impacts.shape == (0,)
    assert found.resampled(0).shape[1] == 0


# ---- through the pruner -----------------------------------------------------------------------------------------


def test_with_calibration_data_the_pruner_measures_what_removals_do():
    model = branches(torch.tanh)
    pruner = UniversalLayerPruner(model, example_inputs=BATCHES[0], calibration=BATCHES, criterion="ablation")
    with torch.no_grad():
        assert [r.impact for r in pruner.removals] == pytest.approx(by_making(pruner, BATCHES))
    assert pruner.impact_unit == "squared relative L2 change of the output, by ablation, on the calibration data"
    assert "calibration" not in " ".join(pruner.notes)


def test_the_first_calibration_batch_is_the_example_where_none_is_given():
    pruner = UniversalLayerPruner(branches(), calibration=BATCHES)
    assert not pruner.inputs.inferred
    assert pruner.inputs.tensors()[0].shape == BATCHES[0].shape


def test_few_samples_and_a_single_batch_are_said():
    pruner = UniversalLayerPruner(branches(), example_inputs=BATCHES[0], calibration=BATCHES[:1])
    notes = " ".join(pruner.notes)
    assert "6 calibration samples are few" in notes
    assert "no intervals" in notes


def test_a_criterion_of_ones_own_scores():
    def by_place(scene: ScoringContext) -> ImpactScores:
        change = torch.arange(len(scene.removals), dtype=torch.float64).numpy()[None]
        return ImpactScores(change=change, size=change * 0 + 1, power=1.0, unit="place")

    register_criterion("place", by_place)
    pruner = UniversalLayerPruner(branches(), example_inputs=BATCHES[0], criterion="place")
    assert [r.impact for r in pruner.removals] == list(range(len(pruner.removals)))
    assert pruner.impact_unit == "place, on the example inputs"


def test_what_may_be_logits_is_compared_as_numbers_and_a_note_says_how_to_change_that():
    model = branches()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    assert "relative L2" in pruner.impact_unit
    (said,) = [note for note in pruner.notes if "kind='distribution'" in note]
    with torch.no_grad():
        num_classes = model(BATCHES[0]).shape[1]
    assert f"the output, {num_classes} numbers a sample" in said
    told = UniversalLayerPruner(model, calibration=BATCHES, criterion="ablation", kind="distribution")
    assert "KL divergence" in told.impact_unit
    assert not any("relative change" in note for note in told.notes)
    model.num_classes = num_classes
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    assert "KL divergence" in pruner.impact_unit
    assert not any("relative change" in note for note in pruner.notes)
    named = UniversalLayerPruner(model, calibration=BATCHES, criterion="ablation")
    assert [r.impact for r in told.removals] == [r.impact for r in named.removals]
    plain = UniversalLayerPruner(model, calibration=BATCHES, criterion="ablation", kind="values")
    assert "squared relative L2 change" in plain.impact_unit


def test_a_kind_of_output_that_is_not_known_or_does_not_fit_is_refused():
    model = randomised(nn.Sequential(linear(), linear(), linear(8, 1), nn.Flatten(0))).double()
    with pytest.raises(UnknownNameError, match="kind is 'logits'; give 'distribution' where the output are logits"):
        UniversalLayerPruner(model, calibration=BATCHES, kind="logits")
    pruner = UniversalLayerPruner(model, calibration=BATCHES, criterion="ablation", kind="distribution")
    with pytest.raises(CalibrationError, match=r"wants logits, \(sample, …, class\), and the output is \d+$"):
        _ = pruner.removals


# ---- bad data -----------------------------------------------------------------------------------------------------


def failing():
    yield BATCHES[0]
    raise OSError("disk is gone")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "no batch"),
        (iter(()), "no batch"),
        (BATCHES[0], r"\[batch\]"),
        ({"x": BATCHES[0]}, r"\[batch\]"),
        (3, "int"),
        (failing(), "batch 1 .*disk is gone"),
    ],
)
def test_calibration_data_that_cannot_be_read_are_an_error_that_says_why(data, says):
    model = branches()
    before = copy_of(model)
    with pytest.raises(CalibrationError, match=says):
        UniversalLayerPruner(model, example_inputs=BATCHES[0], calibration=data)
    assert same_bits(model, before)


def test_a_batch_that_does_not_fit_is_an_error_that_names_it_when_it_is_measured():
    model = branches()
    before = copy_of(model)
    pruner = UniversalLayerPruner(model, example_inputs=BATCHES[0], calibration=[BATCHES[0], rows(2, 5).double()])
    with pytest.raises(CalibrationError, match=r"forward raised on batch 1 of .*: RuntimeError"):
        _ = pruner.groups
    assert same_bits(model, before)


@pytest.mark.parametrize("data", [BATCHES[:1], iter(BATCHES[:1])], ids=["list", "generator"])
def test_one_batch_is_enough_to_plan_and_what_it_does_not_tell_is_said(data):
    pruner = UniversalLayerPruner(branches(), calibration=data)
    assert all(math.isfinite(removal.impact) for removal in pruner.removals)
    assert any("one calibration batch gives no intervals" in note for note in pruner.notes)
    plan = pruner.plan(max_param_reduction=0.5)
    assert plan.removals
    assert all(removal.impact_interval is None for removal in plan.removals)


def test_an_unknown_criterion_is_refused_and_the_known_ones_are_named():
    with pytest.raises(UnknownNameError, match="output_change"):
        UniversalLayerPruner(branches(), example_inputs=BATCHES[0], criterion="taylor")


def test_a_batch_with_other_experts_is_measured_at_the_right_layers():
    """Which experts run depends on the data: a layer is known by its name and call, not by its place in the run."""

    def forward(net, x):
        x = net.stem(x)
        for expert in (net.a, net.b):
            if float(x.sum()) * (1 if expert is net.a else -1) > 0:
                x = x + expert(x)
        return net.head(x + net.c(torch.relu(net.d(x))))

    parts = {name: linear() for name in ("stem", "a", "b", "c", "d", "head")}
    model = randomised(Net(forward, **parts, scale=parameter(1)))
    first = 20 * rows(4)
    other = -first
    with torch.no_grad():
        assert float(model.stem(first).sum()) * float(model.stem(other).sum()) < 0
    pruner = UniversalLayerPruner(model, example_inputs=first)
    index = next(i for i, r in enumerate(pruner.removals) if r.kind == "branch" and "c" in r.groups)
    scene = ScoringContext(
        model=model, graph=pruner.graph, removals=[pruner.removals[index]], batches=read_calibration([other], model)
    )
    with torch.no_grad():
        x = model.stem(other)
        x = x + (model.a(x) if float(x.sum()) > 0 else model.b(x))
        branch = model.c(torch.relu(model.d(x)))
        expected = float(branch.norm() / (x + branch).norm())
    assert score_influence(scene).impacts == pytest.approx([expected], rel=1e-5)


def test_one_number_a_sample_is_not_taken_for_logits():
    model = randomised(nn.Sequential(linear(), nn.Tanh(), linear(), nn.Tanh(), linear(8, 1))).double()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    assert pruner.removals
    assert not any("kind='distribution'" in note for note in pruner.notes)


def test_without_removals_no_note_speaks_of_how_they_were_made():
    model = randomised(nn.Sequential(linear(), nn.Tanh(), linear(8, 3))).double()
    pruner = UniversalLayerPruner(model, calibration=BATCHES)
    assert not pruner.removals
    assert not any("removals were made" in note for note in pruner.notes)
