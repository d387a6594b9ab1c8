"""The price of a group is the price of its removal: group, removal, plan, pruned model and saving name one number."""

import functools
from collections.abc import Callable

import pytest
import torch
from test_removals import ROWS
from torch import nn

from layerprune import UniversalLayerPruner
from layerprune.cost import count_macs
from layerprune.modules import num_params
from layerprune.overview import Overview
from layerprune.proof import by_impact
from models import quirks
from models.nets import ExampleModel, conv, image, linear, randomised, rows


class Block(nn.Module):
    """A residual branch of two groups, behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), linear(8, 16), linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def blocks() -> nn.Module:
    return randomised(nn.Sequential(linear(), Block(), Block(), linear()))


def vgg() -> nn.Module:
    """Convolutions of one width, and a flatten into a wide layer."""
    layers = [conv(3, 8), nn.ReLU(), conv(8), nn.ReLU(), nn.MaxPool2d(2), conv(8), nn.ReLU(), nn.Flatten()]
    return randomised(nn.Sequential(*layers, linear(8 * 16, 32), nn.ReLU(), linear(32), nn.ReLU(), linear(32, 5)))


def of_a_row(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomised(ROWS[name].build())


def of_torchvision(name: str) -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None).eval()


def of_timm(name: str, **sizes: object) -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **sizes).eval()


def of_transformers(family: str) -> nn.Module:
    pytest.importorskip("transformers")
    from models.families import build

    sizes = {"num_hidden_layers": 2} if family in ("bert", "llama", "opt", "vit") else {}
    return build(family, **sizes)


def pixels() -> torch.Tensor:
    return torch.empty(1, 3, 32, 32, device="meta")


_PATCHES = {"img_size": 32, "patch_size": 8, "num_classes": 4}

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], object]]] = {
    "the seed's": (lambda: randomised(ExampleModel()), image),
    "blocks": (blocks, rows),
    "vgg": (vgg, image),
    **{name: (functools.partial(of_a_row, name), row.inputs) for name, row in ROWS.items()},
    **{
        make.__name__: (lambda make=make: make().eval(), rows)
        for make in (
            quirks.around(quirks.body),
            quirks.batch_norm,
            quirks.called_twice,
            quirks.dotted_name,
            quirks.modules_in_a_list,
            quirks.quirk(quirks.empty_layer),
            quirks.quirk(quirks.expanded_weight),
            quirks.quirk(quirks.frozen),
            quirks.quirk(quirks.half_frozen),
            quirks.quirk(quirks.zero_weights),
            quirks.quirk(quirks.odd_names),
            quirks.quirk(quirks.new_weight_norm),
            quirks.quirk(quirks.old_weight_norm),
            quirks.quirk(quirks.one_memory),
            quirks.quirk(quirks.own_parametrization),
            quirks.quirk(quirks.pruning_masks),
            quirks.quirk(quirks.shared_buffers),
            quirks.quirk(quirks.spectral_norm),
            quirks.quirk(quirks.tied_weights),
            quirks.quirk(quirks.transposed_weight),
            quirks.quirk(quirks.two_names),
            quirks.quirk(quirks.unsaved_buffer),
            quirks.quirk(quirks.unused_layer),
        )
    },
    **{
        f"torchvision {name}": (functools.partial(of_torchvision, name), pixels)
        for name in ("resnet18", "squeezenet1_1", "vgg11_bn")
    },
    **{
        f"timm {name}": (functools.partial(of_timm, name, **sizes), pixels)
        for name, sizes in {
            "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2, **_PATCHES},
            "deit_tiny_patch16_224": {"embed_dim": 16, "depth": 2, "num_heads": 2, **_PATCHES},
            "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24), "num_classes": 4},
            "resnet10t": {"num_classes": 4},
        }.items()
    },
    **{
        f"transformers {name}": (functools.partial(of_transformers, name), lambda: None)
        for name in ("bert", "convnext", "distilbert", "llama", "opt", "resnet", "vit")
    },
}


def test_there_are_sixty_models() -> None:
    assert len(MODELS) >= 60


@pytest.mark.parametrize("name", MODELS)
def test_group_removal_plan_and_saving_agree(name: str) -> None:
    build, inputs = MODELS[name]
    model = build()
    pruner = UniversalLayerPruner(model, example_inputs=inputs(), progress=False)
    overview = Overview(pruner._planner, pruner.notes)
    before = num_params(model)
    groups = [group for group in pruner.groups if group.can_remove]
    assert groups, "a model in which nothing can go says nothing of prices"
    for group in groups:
        best = min((r for r in pruner.removals if group.name in r.groups and not _waits(r, pruner)), key=by_impact)
        assert group.num_removed == best.num_params
        assert {group.name, *group.leaves_with} == set(best.groups)
        assert overview.best(group.name) == best
    for group in {0: groups[0], 1: groups[len(groups) // 2], 2: groups[-1]}.values():
        best = overview.best(group.name)
        plan = pruner.plan(groups=best)
        assert plan.num_params_before - plan.num_params_after == group.num_removed
        assert [removal.num_params for removal in plan.removals] == [group.num_removed]
        assert before - num_params(plan.apply(model)) == group.num_removed
    saving = pruner.saving(plan)
    assert saving.amount("num_params") == groups[-1].num_removed
    assert saving.amount("macs") == overview.macs(best)
    assert saving.before.macs == overview.totals.macs
    chosen = overview.most
    assert chosen is not None
    everything = pruner.plan(groups=[pruner.removals[number] for number in chosen])
    assert before - everything.num_params_after == overview.offer_of_all.num_params
    left = count_macs(everything.apply(model), pruner.inputs)
    assert saving.before.macs - left == overview.offer_of_all.macs


def _waits(removal, pruner) -> bool:
    """Whether a removal needs calibration data that there are none of."""
    return removal.needs_calibration and pruner._batches is None


def test_what_is_shown_of_a_block_is_what_either_half_takes() -> None:
    pruner = UniversalLayerPruner(blocks(), example_inputs=rows())
    size = 16 + (8 * 16 + 16) + (16 * 8 + 8)
    by_name = {group.name: group for group in pruner.groups}
    up, down = by_name["1.up"], by_name["1.down"]
    assert (up.num_params, down.num_params) == (8 * 16 + 16, 16 * 8 + 8)
    assert up.num_removed == down.num_removed == size
    assert (up.leaves_with, down.leaves_with) == (("1.down",), ("1.up",))
    total = 2 * (8 * 8 + 8) + 2 * size
    text = pruner.render_plan(full=True)
    assert text.count(f"  Removes: {size} ({size / total:.1%}) with 1.up\n") == 1
    assert text.count(f"  Removes: {size} ({size / total:.1%}) with 1.down\n") == 1
    assert f"Parameters that can leave now, together: {2 * size} ({2 * size / total:.1%})" in text


def test_a_critical_group_has_no_price() -> None:
    pruner = UniversalLayerPruner(blocks(), example_inputs=rows())
    stem = next(group for group in pruner.groups if group.name == "0")
    assert (stem.num_removed, stem.leaves_with) == (0, ())
    assert pruner.render_plan(full=True).count("  Removes: ") == 4


def test_what_a_group_takes_when_it_is_named_is_said_where_that_is_another_removal() -> None:
    """Named, ``b`` leaves alone; the removal that harms least takes the whole branch, which hardly counts."""
    from models.nets import Net

    net = Net(lambda net, x: net.head(x + net.b(torch.relu(net.a(x)))), a=linear(), b=linear(), head=linear(8, 2))
    model = randomised(nn.Sequential(linear(), net))
    with torch.no_grad():
        net.b.weight.mul_(1e-2)
        net.b.bias.mul_(1e-2)
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    plan = pruner.plan(groups=["1.b"])
    lines = pruner.render_plan(full=True).split("Lead Transform: 1.b ")[1].splitlines()
    assert "  Removes: 144 (61.5%) with 1.a" in lines
    by_name = next(line for line in lines if line.startswith("  By name: "))
    assert by_name.startswith(f"  By name: {plan.num_params_before - plan.num_params_after} (30.8%), impact ")
