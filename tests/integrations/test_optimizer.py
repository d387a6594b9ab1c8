"""An optimizer goes on with a pruned model: groups, moments, and what is said of the rest."""

import pytest
import torch
from torch import nn

from layerprune import PruningPlan, UniversalLayerPruner
from layerprune.errors import IntegrationError
from layerprune.integrations import Schedule, ScheduledPruning, prune_in_training, rebuild_optimizer
from models.nets import ExampleModel, Net, conv, image, linear, randomised, rows

OPTIMIZERS = {
    "foreach": lambda groups: torch.optim.AdamW(groups, lr=1e-3, foreach=True),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
    "amsgrad": lambda groups: torch.optim.Adam(groups, lr=1e-3, amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, centered=True, momentum=0.9),
}


def groups_of(model):
    return [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0, "lr": 1e-4},
    ]


def train(model, optimizer, inputs, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(inputs).square().mean().backward()
        optimizer.step()


def state_by_name(model, optimizer):
    return {
        name: {k: v.clone() if torch.is_tensor(v) else v for k, v in optimizer.state[p].items()}
        for name, p in model.named_parameters()
    }


def same_state(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[k], expected[k]) if torch.is_tensor(expected[k]) else found[k] == expected[k]
        for k in expected
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("inplace", [True, False])
def test_moments_of_what_is_left_go_on_and_those_of_lost_channels_leave(name, inplace):
    model = randomised(ExampleModel())
    optimizer = OPTIMIZERS[name](groups_of(model))
    train(model, optimizer, image())
    before, options = state_by_name(model, optimizer), [dict(group, params=[]) for group in optimizer.param_groups]
    if inplace:
        record = prune_in_training(model, optimizer, example_inputs=image(), groups=["conv2b"])
        assert record.num_params_after == sum(p.numel() for p in model.parameters())
        assert record.macs_after < record.macs_before
        pruned = model
    else:
        pruned = UniversalLayerPruner(model, example_inputs=image()).prune(groups=["conv2b"])
        report = rebuild_optimizer(optimizer, pruned, model)
        assert report.cut == ("conv3.weight",)
        assert report.num_removed == 4  # weights and biases of conv2b and bn2b
        assert len(report.kept) == len(list(pruned.parameters())) - 1
        assert report.notes == ()
        assert str(report).startswith("parameters: ")
    after = state_by_name(pruned, optimizer)
    assert same_state(after["conv2a.weight"], before["conv2a.weight"])
    cut = {k: v[:, :64] if torch.is_tensor(v) and v.dim() > 1 else v for k, v in before["conv3.weight"].items()}
    assert same_state(after["conv3.weight"], cut)
    assert [dict(group, params=[]) for group in optimizer.param_groups] == options
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for group in groups_of(pruned) for p in group["params"]]
    assert set(optimizer.state) == set(held)
    train(pruned, optimizer, image())
    assert all(bool(p.isfinite().all()) for p in pruned.parameters())


def test_the_next_step_is_that_of_a_model_that_never_had_the_rest():
    """Momentum of a removed concat branch plays no part: the step equals one computed by hand."""
    model = randomised(ExampleModel())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, image())
    momentum = optimizer.state[model.conv3.weight]["momentum_buffer"][:, :64].clone()
    prune_in_training(model, optimizer, example_inputs=image(), groups=["conv2b"])
    weight = model.conv3.weight.detach().clone()
    optimizer.zero_grad()
    model.train()(image()).square().mean().backward()
    expected = weight - 0.1 * (0.9 * momentum + model.conv3.weight.grad)
    optimizer.step()
    assert torch.allclose(model.conv3.weight, expected, atol=1e-7)


def test_scheduler_stays_and_a_group_without_parameters_too():
    model = randomised(nn.Sequential(*(linear() for _ in range(4))))
    groups = [{"params": list(layer.parameters()), "lr": 0.1 * (n + 1)} for n, layer in enumerate(model)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(model, optimizer, rows())
    prune_in_training(model, optimizer, example_inputs=rows(), groups=["1"])
    scheduler.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 0, 2, 2]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    train(model, optimizer, rows())


def test_gradients_that_are_scaled_for_half_precision_go_on():
    model = randomised(nn.Sequential(*(linear() for _ in range(4))))
    optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu")
    for step in range(4):
        if step == 2:
            prune_in_training(model, optimizer, example_inputs=rows(), groups=["1"])
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.train()(rows()).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}
    assert len(optimizer.state) == 6


def test_a_compiled_model_is_compiled_again():
    model = randomised(nn.Sequential(*(linear() for _ in range(4))))
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.AdamW(compiled.parameters())
    train(compiled, optimizer, rows())
    prune_in_training(compiled, optimizer, example_inputs=rows(), groups=["1"])
    assert len(model) == 3
    assert torch.allclose(compiled(rows()), model(rows()))
    train(compiled, optimizer, rows())
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}


def test_an_average_of_weights_goes_on_with_the_plan_of_the_round():
    model = randomised(nn.Sequential(*(linear() for _ in range(4))))
    half = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=half)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, rows())
    average.update_parameters(model)
    prune_in_training(model, optimizer, example_inputs=rows(), groups=["1"])
    PruningPlan.of(model).parts[-1].apply(average.module, inplace=True)
    average.update_parameters(model)
    before = {name: parameter.detach().clone() for name, parameter in average.module.named_parameters()}
    train(model, optimizer, rows())
    average.update_parameters(model)
    assert before.keys() == dict(model.named_parameters()).keys()
    for name, parameter in average.module.named_parameters():
        assert torch.allclose(parameter, (before[name] + model.get_parameter(name)) / 2)


def test_parameters_of_other_models_and_frozen_ones_are_left_alone():
    model, other = randomised(nn.Sequential(*(linear() for _ in range(4)))), linear()
    model[2].requires_grad_(False)
    mine = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*other.parameters(), *mine])
    optimizer.zero_grad()
    other(model(rows())).sum().backward()
    optimizer.step()
    report = rebuild_optimizer(optimizer, UniversalLayerPruner(model, example_inputs=rows()).prune(groups=["1"]), model)
    held = optimizer.param_groups[0]["params"]
    assert held[:2] == list(other.parameters())
    assert len(held) == 6
    assert all(optimizer.state[p] for p in held)
    assert report.untrained == report.added == ()


def projected():
    sizes = ((3, 4), (4, 5), (5, 6), (6, 7))
    return nn.Sequential(*(nn.Sequential(conv(a, b, bias=False), nn.ReLU()) for a, b in sizes), conv(7, 3))


def test_a_weight_that_took_in_a_projection_starts_anew_and_is_said():
    model, batches = randomised(projected()), [image(8, seed=seed) for seed in range(4)]
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, image())
    record = prune_in_training(model, optimizer, calibration=batches, groups=["1.0"], repair=None)
    assert record.notes == ("the optimizer's state of '2.0.weight' is reset: a projection was folded into it",)
    assert model.get_parameter("2.0.weight") not in optimizer.state
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    train(model, optimizer, image())


def test_a_state_that_is_not_one_value_each_is_reset_where_channels_leave():
    wide = Net(lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], -1)), a=linear(), b=linear(), c=linear(16, 8))
    wide = randomised(nn.Sequential(linear(), wide, linear()))
    optimizer = torch.optim.Adafactor(wide.parameters())
    train(wide, optimizer, rows())
    record = prune_in_training(wide, optimizer, example_inputs=rows(), groups=["1.b"])
    (note,) = record.notes
    assert "'1.c.weight' is reset: it lost channels, and 'row_var' of shape (8, 1) is not one value each" in note
    train(wide, optimizer, rows())


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_rebuilt_is_refused_and_nothing_changes():
    model = randomised(nn.Sequential(*(linear() for _ in range(4))))
    for optimizer, message in (
        (torch.optim.LBFGS(model.parameters()), "LBFGS keeps parameters in '_params', beside its groups"),
        (torch.optim.SGD(linear().parameters()), "holds no parameter of the Sequential"),
    ):
        with pytest.raises(IntegrationError, match=message):
            prune_in_training(model, optimizer, example_inputs=rows(), groups=["1"])
        assert len(model) == 4
    with pytest.raises(IntegrationError, match="wrapped in DataParallel"):
        prune_in_training(nn.DataParallel(model), example_inputs=rows(), groups=["1"])


# ---- a loop of one's own ---------------------------------------------------------------------------------------------


def test_a_loop_prunes_on_schedule_and_its_state_prunes_a_fresh_model():
    def make():
        return randomised(nn.Sequential(*(linear() for _ in range(7))))

    model, schedule = make(), Schedule(start=2, every=3, num_rounds=2, share=1.5 / 7)
    optimizer = torch.optim.AdamW(model.parameters())
    pruning = ScheduledPruning(schedule, example_inputs=rows())
    found = []
    for step in range(1, 8):
        train(model, optimizer, rows(), steps=1)
        found.append(pruning.step(step, model, optimizer))
    assert [record is not None for record in found] == [False, True, False, False, True, False, False]
    assert [len(record.removed) for record in pruning.records] == [1, 2], "the second round uses what the first left"
    assert pruning.is_over
    assert pruning.records[0].figures() == {
        "pruning/round": 1.0,
        "pruning/num_params": 6 * 72.0,
        "pruning/macs": float(pruning.records[0].macs_after),
        "pruning/impact": pruning.records[0].impact,
    }
    fresh, again = make(), ScheduledPruning(schedule)
    again.restore(pruning.state_of(model), fresh)
    assert again.records == pruning.records
    assert fresh.state_dict().keys() == model.state_dict().keys()
    other = UniversalLayerPruner(make(), example_inputs=rows()).prune(groups=["5"])
    with pytest.raises(IntegrationError, match="pruned in another way"):
        again.restore(pruning.state_of(model), other)
