"""Impact: what the criteria say of removals, against answers by hand and against making them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.calibration import read_calibration
from layerprune.errors import CalibrationError, UnknownNameError
from layerprune.impact import shortlist
from layerprune.impact.ablation import score_ablation
from layerprune.impact.criteria import register_criterion
from layerprune.impact.evidence import Evidence, Scene
from layerprune.impact.influence import score_influence
from layerprune.impact.magnitude import score_magnitude
from layerprune.impact.output_change import score_output_change
from nets import Net, conv, copy_of, image, linear, parameter, randomised, rows, same_bits, tokens


def scene_of(model, batches, **options):
    pruner = UniversalLayerPruner(model, example_inputs=batches[0])
    return Scene(model, pruner.graph, pruner.removals, read_calibration(batches, model), **options), pruner


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


def test_of_a_linear_model_the_estimate_of_the_output_change_is_exact_on_average():
    scene, pruner = scene_of(branches(), BATCHES)
    with torch.no_grad():
        truth = by_making(pruner, BATCHES)
    assert score_output_change(scene, num_directions=400).impacts == pytest.approx(truth, rel=0.1)


def test_the_estimate_of_a_pair_is_what_both_together_change():
    scene, pruner = scene_of(branches(), BATCHES[:1])
    found = score_output_change(scene, num_directions=600)
    names = [removal.groups for removal in pruner.removals]
    i, j = names.index(("b",)), names.index(("c",))
    together = found.impacts[i] + found.impacts[j] + 2 * found.pairs[i, j]
    model = pruner._original
    with torch.no_grad():
        x = model.stem(BATCHES[0])
        x = x + model.a(x)
        full = x + model.b(x)
        full = model.head(full + model.c(full))
        without = model.head(x)
        b_alone, c_first = model.b(x), model.c(x + model.b(x))
        first_order = nn.functional.linear(b_alone + model.c.weight.mm(b_alone.T).T + c_first, model.head.weight)
    size = float(full.square().sum())
    assert together == pytest.approx(float(first_order.square().sum()) / size, rel=0.15)
    assert float((full - without).square().sum()) > 0


def test_a_lost_operand_of_a_concat_counts_at_its_place():
    def forward(net, x):
        x = net.stem(x)
        return net.head(torch.cat([net.a(x), net.b(x), net.c(x)], 1))

    parts = {"a": conv(4, 2), "b": conv(4, 3), "c": conv(4, 5), "stem": conv(3, 4), "head": conv(10, 4)}
    model = randomised(Net(forward, **parts)).double()
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
    small = [i for i, r in enumerate(pruner.removals) if r.kind == "branch"]
    estimate = score_output_change(scene, num_directions=50).impacts
    assert [estimate[i] for i in small] == pytest.approx([found.impacts[i] for i in small], rel=0.3)


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


def test_of_many_removals_a_shortlist_is_measured_and_the_rest_estimated(monkeypatch):
    monkeypatch.setattr(shortlist, "LONGEST", 2)
    scene, _ = scene_of(branches(torch.tanh), BATCHES)
    truth = score_ablation(scene).impacts
    found = shortlist.score_shortlist(scene)
    measured = [i for i in range(len(truth)) if found.impacts[i] == pytest.approx(truth[i])]
    assert len(measured) >= 2
    assert int(truth.argmin()) in measured
    assert "2 of" in found.notes[-1]


def test_an_interval_holds_the_impact_and_one_batch_gives_none():
    scene, _ = scene_of(branches(torch.tanh), BATCHES)
    found = score_ablation(scene)
    draws = found.resampled(0)
    assert ((draws.min(0) <= found.impacts) & (found.impacts <= draws.max(0))).all()
    assert (draws == found.resampled(0)).all()
    assert score_ablation(scene_of(branches(), BATCHES[:1])[0]).resampled(0).shape[0] == 0


# ---- through the pruner -----------------------------------------------------------------------------------------


def test_with_calibration_data_the_pruner_measures_what_removals_do():
    model = branches(torch.tanh)
    pruner = UniversalLayerPruner(model, example_inputs=BATCHES[0], calibration=BATCHES)
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
    def by_place(scene: Scene) -> Evidence:
        change = torch.arange(len(scene.removals), dtype=torch.float64).numpy()[None]
        return Evidence(change, change * 0 + 1, 1.0, "place")

    register_criterion("place", by_place)
    pruner = UniversalLayerPruner(branches(), example_inputs=BATCHES[0], criterion="place")
    assert [r.impact for r in pruner.removals] == list(range(len(pruner.removals)))
    assert pruner.impact_unit == "place, on the example inputs"


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


def test_labels_in_a_batch_are_answered_with_how_to_leave_them_out():
    with pytest.raises(CalibrationError, match=r"\[x for x, y in loader\]"):
        UniversalLayerPruner(branches(), calibration=[(batch, torch.zeros(6)) for batch in BATCHES])


def test_a_batch_that_does_not_fit_is_an_error_when_it_is_measured():
    pruner = UniversalLayerPruner(branches(), example_inputs=BATCHES[0], calibration=[BATCHES[0], rows(2, 5).double()])
    with pytest.raises(CalibrationError, match="what the model's forward takes"):
        _ = pruner.groups


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
    scene = Scene(model, pruner.graph, [pruner.removals[index]], read_calibration([other], model))
    with torch.no_grad():
        x = model.stem(other)
        x = x + (model.a(x) if float(x.sum()) > 0 else model.b(x))
        branch = model.c(torch.relu(model.d(x)))
        expected = float(branch.norm() / (x + branch).norm())
    assert score_influence(scene).impacts == pytest.approx([expected], rel=1e-5)
