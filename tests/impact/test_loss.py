"""The user's own loss: on pairs of inputs and labels, by making removals and by one backward, and what can be wrong."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from layerprune import UniversalLayerPruner
from layerprune.capture import read_calibration
from layerprune.errors import CalibrationError
from layerprune.impact import ScoringContext
from layerprune.impact.ablation import score_ablation
from layerprune.impact.estimators.loss import score_loss
from models.nets import Net, Photograph, linear, randomised, rows

WEIGHT = {"a": 0.5, "b": -2.0, "c": 1.0}


class Rows(nn.Linear):
    """Multiplies each row by a number."""

    def __init__(self, factor: float):
        super().__init__(3, 3, bias=False)
        nn.init.eye_(self.weight)
        with torch.no_grad():
            self.weight.mul_(factor)


def additive(head: float = 1.0) -> nn.Module:
    """``head · (x + a·x + b·x + c·x)``: without a branch the output lacks ``head · weight · x``."""

    def forward(net, x):
        y = net.stem(x)
        return net.head(y + net.a(y) + net.b(y) + net.c(y))

    branches = {name: Rows(weight) for name, weight in WEIGHT.items()}
    return Net(forward, stem=Rows(1.0), head=Rows(head), **branches).double().eval()


X = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, -2.0], [4.0, 0.0, 0.0], [1.0, 1.0, -1.0]]).double()
Y = torch.tensor([1.0, -1.0, 2.0, 3.0]).double()
SUMS = [6.0, -3.0, 4.0, 1.0]  # of the rows of X
PAIRS = [(X[:2], Y[:2]), (X[2:], Y[2:])]


def shortfall(model, item):
    """A loss that is linear in the output: the label less the sum of the row, on average."""
    x, y = item
    return (y - model(x).sum(1)).mean()


def impacts_of(pruner):
    return {r.groups[0]: r.impact for r in pruner.removals if len(r.groups) == 1 and r.groups[0] in WEIGHT}


def test_a_training_loader_of_pairs_and_a_loss_are_all_that_is_needed():
    loader = DataLoader(TensorDataset(X, Y), batch_size=2)
    pruner = UniversalLayerPruner(additive(head=2.0), calibration=loader, loss=shortfall)
    mean = sum(SUMS) / 4  # without a branch of weight w the loss lacks -2 · w · mean
    assert impacts_of(pruner) == pytest.approx({name: 2 * w * mean for name, w in WEIGHT.items()})
    assert pruner.impact_unit == "change of your loss, by ablation, on the calibration data"
    assert pruner.inputs.args[0].shape == (2, 3)


def test_the_estimate_adds_the_squares_of_each_element_s_part_and_averages_over_samples():
    pruner = UniversalLayerPruner(additive(head=2.0), calibration=PAIRS, loss=shortfall, criterion="loss")
    length = sum(math.sqrt(sum(x * x for x in row)) for row in X.tolist()) / 4  # an element's part is 2 · weight · x
    assert impacts_of(pruner) == pytest.approx({name: 2 * abs(w) * length for name, w in WEIGHT.items()})
    assert pruner.impact_unit == "change of your loss, estimated, on the calibration data"


def test_batches_count_by_their_samples():
    uneven = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    pruner = UniversalLayerPruner(additive(), calibration=uneven, loss=shortfall)
    assert impacts_of(pruner) == pytest.approx({name: w * sum(SUMS) / 4 for name, w in WEIGHT.items()})


def test_the_loss_may_take_keywords_call_the_model_late_and_write_into_its_item():
    def loss(model, item):
        item["x"].add_(1.0)
        return (item["y"] - model(x=item["x"]).sum(1)).mean()

    items = [{"x": X.clone(), "y": Y.clone()}]
    for criterion in ("loss", "ablation"):
        pruner = UniversalLayerPruner(additive(), calibration=items, loss=loss, criterion=criterion)
        rows = [[x + 1 for x in row] for row in X.tolist()]
        sizes = [sum(row) if criterion == "ablation" else math.hypot(*row) for row in rows]
        truth = [(w if criterion == "ablation" else abs(w)) * sum(sizes) / 4 for w in WEIGHT.values()]
        assert list(impacts_of(pruner).values()) == pytest.approx(truth)
        assert list(pruner.inputs.kwargs) == ["x"]
    assert torch.equal(items[0]["x"], X)


def test_a_metric_without_a_gradient_is_measured_by_ablation():
    def errors(model, item):
        return float((model(item[0]).sum(1) < item[1]).double().mean())

    pruner = UniversalLayerPruner(additive(), calibration=PAIRS, loss=errors, criterion="ablation")
    # The rows' sums times 0.5, 0, 2.5 and -0.5 are what the whole model and those without a, b, c give.
    missed = {f: sum(f * s < y for s, y in zip(SUMS, Y.tolist(), strict=True)) / 4 for f in (0.5, 0.0, 2.5, -0.5)}
    truth = {name: missed[1.5 - 1 - w] - missed[0.5] for name, w in WEIGHT.items()}
    assert impacts_of(pruner) == pytest.approx(truth)


def test_other_criteria_see_the_inputs_that_the_loss_passes():
    of_pairs = UniversalLayerPruner(additive(), calibration=PAIRS, loss=shortfall, criterion="influence")
    of_inputs = UniversalLayerPruner(additive(), calibration=[x for x, _ in PAIRS], criterion="influence")
    assert impacts_of(of_pairs) == impacts_of(of_inputs)


@pytest.mark.parametrize("score", [score_loss, score_ablation])
def test_a_loss_leaves_the_model_and_the_generator_as_they_are(score):
    model = additive().train()
    before = Photograph(model)
    pruner = UniversalLayerPruner(model, calibration=PAIRS, loss=shortfall)
    batches = read_calibration(PAIRS, model, shortfall)
    scene = ScoringContext(model=model, graph=pruner.graph, removals=pruner.removals, batches=batches, loss=shortfall)
    assert score(scene).impacts.tolist() == score(scene).impacts.tolist()
    assert Photograph(model) == before
    assert all(p.grad is None for p in model.parameters())


def test_of_a_classifier_the_estimate_ranks_small_removals_like_the_loss():
    def forward(net, x):
        x = net.stem(x)
        for branch in (net.a, net.b, net.c):
            x = x + torch.tanh(branch(x))
        return net.head(x)

    model = randomised(Net(forward, **{name: linear() for name in ("stem", "a", "b", "c", "head")})).double()
    with torch.no_grad():
        for name, scale in (("a", 0.01), ("b", 0.3), ("c", 0.06)):
            getattr(model, name).weight.mul_(scale)
            getattr(model, name).bias.mul_(scale)
    pairs = [(rows(64, seed=seed).double(), torch.arange(64) % 8) for seed in (1, 2)]

    def loss(net, item):
        return F.cross_entropy(net(item[0]), item[1])

    pruner = UniversalLayerPruner(model, calibration=pairs, loss=loss, criterion="loss")
    impacts = impacts_of(pruner)
    assert impacts["a"] < impacts["c"] < impacts["b"]


# ---- what can be wrong ----------------------------------------------------------------------------------------------


def without_history(model, item):
    with torch.no_grad():
        return shortfall(model, item)


BAD = {
    "nan": (lambda model, item: shortfall(model, item) * float("nan"), "the loss is nan on batch 0"),
    "several": (lambda model, item: model(item[0]).sum(1), r"a tensor of shape \(2,\).*mean"),
    "nothing": (lambda model, item: [model(item[0])][1:], "returned a list"),
    "no history": (without_history, "no history.*ablation"),
    "a number": (lambda model, item: shortfall(model, item).item(), "no history.*ablation"),
    "no call": (lambda model, item: item[0].sum(), "did not call the model"),
    "two calls": (lambda model, item: (model(item[0]) - model(2 * item[0])).sum(), "2 times.*ablation"),
    "raises early": (lambda model, item: model(item["x"]), "raised before it called the model: TypeError"),
    "raises late": (lambda model, item: model(item[0]).sum() / item[2], "loss.*batch 0 .*IndexError"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_loss_that_will_not_do_is_an_error_that_says_why(name):
    loss, says = BAD[name]
    model = additive()
    before = Photograph(model)
    with pytest.raises(CalibrationError, match=says):
        _ = UniversalLayerPruner(model, calibration=PAIRS, loss=loss, criterion="loss").groups
    assert Photograph(model) == before


def test_a_loss_that_is_nan_on_a_later_batch_names_it():
    pairs = [PAIRS[0], (X[2:], Y[2:] * float("nan"))]
    with pytest.raises(CalibrationError, match="nan on batch 1"):
        _ = UniversalLayerPruner(additive(), calibration=pairs, loss=shortfall).groups


def test_a_loss_that_is_nan_without_a_layer_leaves_that_impact_unknown():
    def loss(model, item):  # without b the sums of the rows are 2.5 times those of X, else less
        out = model(item[0]).sum(1)
        return torch.where(out > 12, float("nan"), out).mean()

    pruner = UniversalLayerPruner(additive(), calibration=PAIRS, loss=loss)
    impacts = impacts_of(pruner)
    assert impacts["b"] != impacts["b"]
    assert impacts["a"] == pytest.approx(-0.5 * sum(SUMS) / 4)
    assert any("not known" in note for note in pruner.notes)


def test_a_loss_without_data_and_a_criterion_without_a_loss_are_refused():
    with pytest.raises(CalibrationError, match="calibration="):
        UniversalLayerPruner(additive(), example_inputs=X, loss=shortfall)
    with pytest.raises(CalibrationError, match="loss="):
        _ = UniversalLayerPruner(additive(), calibration=[X], criterion="loss").groups


def test_what_was_read_before_a_loader_failed_can_be_used():
    def failing():
        yield PAIRS[0]
        raise OSError("disk is gone")

    with pytest.raises(CalibrationError, match=r"batch 1 .*error\.read holds the 1 .*disk is gone$") as caught:
        UniversalLayerPruner(additive(), calibration=failing(), loss=shortfall)
    pruner = UniversalLayerPruner(additive(), calibration=caught.value.read, loss=shortfall)
    assert impacts_of(pruner) == pytest.approx({name: w * 1.5 for name, w in WEIGHT.items()})


def test_labels_without_a_loss_are_left_out_and_the_plan_says_so():
    labelled = UniversalLayerPruner(additive(), calibration=PAIRS)
    assert impacts_of(labelled) == impacts_of(UniversalLayerPruner(additive(), calibration=[x for x, _ in PAIRS]))
    assert any("item 2 of the 2 in each batch is left out" in note for note in labelled.notes)
