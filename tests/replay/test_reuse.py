"""Ablations that go on from outputs of the original's forward: the same bits as whole forwards, or whole forwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from layerprune import UniversalLayerPruner
from layerprune.capture import read_calibration
from layerprune.edits import Pass
from layerprune.errors import DroppedTensorError
from layerprune.graph import Refusal
from layerprune.impact import ImpactScores, ScoringContext, ablate
from layerprune.replay import ReusePolicy
from layerprune.replay import reuse as output_reuse
from layerprune.replay.cached_call import CachedCall, Leaf, NotPlain
from models.nets import Net, linear, randomised, repeats, rows
from oracle.random_nets import THEMES, nets

NAMES = ("a", "b", "c", "d", "e", "f", "g")
_SEEDS = (1, 2, 3)


def scene_of(model: nn.Module, batches: Sequence[Any], **more: Any) -> ScoringContext:
    loss = more.get("loss")
    pruner = UniversalLayerPruner(model, example_inputs=more.pop("example", batches[0]), criterion="magnitude")
    removals = [removal for removal in pruner.removals if not removal.needs_calibration]
    return ScoringContext(
        model=pruner._original,
        graph=pruner.graph,
        removals=removals,
        batches=read_calibration(batches, model, loss),
        **more,
    )


def both(scene: ScoringContext, sets: Sequence[Any] | None = None) -> tuple[ImpactScores, ImpactScores, ReusePolicy]:
    """Ablation by whole forwards and by such as go on, and what the latter has written down."""
    sets = [removal.edits for removal in scene.removals] if sets is None else sets
    assert len(sets) >= output_reuse.FEWEST, "a test of nothing"
    whole = ablate(replace(scene, reuse_policy=ReusePolicy(doubt="whole ones were asked for")), sets)
    reuse_policy = ReusePolicy()
    return whole, ablate(replace(scene, reuse_policy=reuse_policy), sets), reuse_policy


def assert_same(whole: ImpactScores, other: ImpactScores) -> None:
    assert np.array_equal(whole.change, other.change, equal_nan=True)
    assert np.array_equal(whole.size, other.size, equal_nan=True)
    assert whole.notes == other.notes


def chain(step: Callable[..., Tensor] | None = None, make: Callable[[], nn.Module] = linear, **more: Any) -> Net:
    """``stem``, seven residual branches, ``head``."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        for name in NAMES:
            x = x + torch.tanh(getattr(net, name)(x)) if step is None else step(net, getattr(net, name), x)
        return net.head(x)

    parts = {name: make() for name in NAMES}
    return randomised(Net(forward, stem=linear(), **parts, head=linear(), **more)).eval()


BATCHES = [rows(5, seed=seed) for seed in _SEEDS]


def test_of_seven_branches_those_before_the_removed_one_are_not_run_again():
    scene = scene_of(chain(), BATCHES[:1])
    whole, found, reuse_policy = both(scene)
    assert_same(whole, found)
    assert (reuse_policy.doubt, reuse_policy.is_trusted) == ("", True)
    calls = {scene.graph.frames[frame].fqn: num / 5 for frame, num in reuse_policy.handed_on.items()}  # 5 samples
    # In order: by the seven removals, and by three forwards of the untouched model: outermost, innermost, half of them.
    # The last branch and the head come after all that some removal changes, and are not kept.
    assert calls == {"stem": 7 + 3, "a": 6 + 3, "b": 5 + 3, "c": 4 + 2, "d": 3 + 2, "e": 2 + 2, "f": 1 + 2}


def residual_inplace(net: Net, branch: nn.Module, x: Tensor) -> Tensor:
    y = branch(x)
    y += x
    return F.relu_(y)


class Block(nn.Module):
    """Conv, norm and an activation in place, twice, on a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Dense(nn.Module):
    """Adds to a list of tensors that it gets, and returns the list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, found: list[Tensor]) -> list[Tensor]:
        found.append(torch.tanh(self.layer(found[-1])) + found[-1])
        return found


class Last(nn.Module):
    """Returns all but in its argument's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x[:, :], {"y": self.layer(x)}


def test_hand_made_nets_that_may_be_handed_on():
    shared = linear()
    images = [torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in _SEEDS]
    blocks = randomised(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), *(Block() for _ in range(5)), nn.Conv2d(4, 2, 1)))
    cases = {
        "in place": (chain(residual_inplace), BATCHES),
        "shared": (chain(lambda net, branch, x: x + net.both(branch(x)), both=shared), BATCHES),
        "dropout": (chain(make=lambda: nn.Sequential(linear(), nn.Dropout(0.5))), BATCHES),
        "views": (chain(lambda net, branch, x: (o := branch(x))[0] + o[1]["y"], Last), BATCHES),
        "blocks": (blocks.eval(), images),
        "gate": (chain(lambda net, branch, x: x * torch.sigmoid(branch(x))), BATCHES),
    }
    for name, (model, batches) in cases.items():
        whole, found, reuse_policy = both(scene_of(model, batches))
        assert_same(whole, found)
        assert reuse_policy.is_trusted, f"{name}: {reuse_policy.doubt}"
        assert sum(reuse_policy.handed_on.values()) > 3, name


class Writer(nn.Module):
    """Writes into what it gets, past the version counter where ``hidden``."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.layer, self.hidden = linear(), hidden

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        (x.data if self.hidden else x).mul_(0.5)
        return x + y


@pytest.mark.parametrize("hidden", [False, True])
def test_a_module_that_writes_into_its_argument_is_run(hidden: bool):
    model = chain(lambda net, branch, x: branch(net.pre(x)) + x, lambda: Writer(hidden), pre=linear())
    whole, found, reuse_policy = both(scene_of(model, BATCHES))
    assert_same(whole, found)
    if hidden:  # nothing counts these writes, so that the checks have to find them
        assert reuse_policy.doubt
    else:
        assert reuse_policy.is_trusted


def test_a_list_that_modules_add_to_is_not_handed_on():
    def forward(net: Net, x: Tensor) -> Tensor:
        found = [net.stem(x)]
        for name in NAMES:
            found = getattr(net, name)(found)
        return net.head(found[-1])

    model = randomised(Net(forward, stem=linear(), **{name: Dense() for name in NAMES}, head=linear())).eval()
    scene = scene_of(model, BATCHES)
    whole, found, reuse_policy = both(scene)
    assert_same(whole, found)
    names = {scene.graph.frames[frame].fqn for frame in reuse_policy.handed_on}
    assert names.isdisjoint(NAMES)
    assert reuse_policy.is_trusted


class Cache:
    """What a module may get, and write into."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class Remembering(nn.Module):
    """Adds the mean of what a cache holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        cache.seen.append(self.layer(x))
        return torch.stack(cache.seen).mean(0)


def test_a_module_that_takes_a_cache_is_run_and_what_it_calls_is_handed_on():
    def forward(net: Net, x: Tensor) -> Tensor:
        cache, x = Cache(), net.stem(x)
        for name in NAMES:
            x = x + getattr(net, name)(x, cache)
        return net.head(x)

    model = randomised(Net(forward, stem=linear(), **{name: Remembering() for name in NAMES}, head=linear())).eval()
    scene = scene_of(model, BATCHES)
    whole, found, reuse_policy = both(scene)
    assert_same(whole, found)
    names = {scene.graph.frames[frame].fqn for frame in reuse_policy.handed_on}
    assert "a.layer" in names
    assert names.isdisjoint(NAMES)


class Counting(nn.Module):
    """Scales by how often it was called."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.layer, self.where = linear(), where
        self.count, self.counts = 0, [0]
        self.register_buffer("number", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "attribute":
            self.count += 1
            return self.layer(x) * (1 + 0.01 * self.count)
        if self.where == "list":
            self.counts[0] += 1
            return self.layer(x) * (1 + 0.01 * self.counts[0])
        self.number += 1
        return self.layer(x) * (1 + 0.01 * self.number)


@pytest.mark.parametrize("where", ["attribute", "list", "buffer"])
def test_a_model_that_counts_its_calls_runs_whole(where: str):
    scene = scene_of(chain(make=lambda: Counting(where)), BATCHES)
    whole, found, reuse_policy = both(scene)
    assert_same(whole, found)
    assert not reuse_policy.handed_on


def test_a_cache_that_is_filled_by_the_first_forward_is_no_state():
    def scaled(net: Net, branch: nn.Module, x: Tensor) -> Tensor:
        if not hasattr(net, "table"):
            object.__setattr__(net, "table", torch.arange(8.0) / 8)
        return x + net.table * branch(x)

    whole, found, reuse_policy = both(scene_of(chain(scaled), BATCHES))
    assert_same(whole, found)
    assert reuse_policy.is_trusted


def test_a_forward_that_draws_runs_whole():
    model = chain(lambda net, branch, x: x + branch(x) + 0.01 * torch.rand_like(x))
    whole, found, reuse_policy = both(scene_of(model, BATCHES))
    assert_same(whole, found)
    assert reuse_policy.doubt == "the forward draws random numbers"
    assert not reuse_policy.handed_on


_REGISTER: dict[str, Tensor] = {}


class Telling(nn.Module):
    """Leaves its output in a global, where later ones look."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y = y + 0.1 * _REGISTER.get("last", torch.zeros(()))
        _REGISTER["last"] = y
        return y


def test_what_modules_hand_over_in_globals_is_found_by_the_checks():
    def forward(net: Net, x: Tensor) -> Tensor:
        _REGISTER.clear()
        x = net.stem(x)
        for name in NAMES:
            x = x + getattr(net, name)(x)
        return net.head(x)

    model = randomised(Net(forward, stem=linear(), **{name: Telling() for name in NAMES}, head=linear())).eval()
    whole, found, reuse_policy = both(scene_of(model, BATCHES))
    assert_same(whole, found)
    assert reuse_policy.doubt


_FIRED = np.zeros(1, int)  # a list would be put back after each forward


def _fire(*_: Any) -> None:
    _FIRED[0] += 1


def test_hooks_run_in_each_forward():
    model = chain(make=lambda: nn.Sequential(linear(), nn.Tanh()))
    for name in NAMES:
        getattr(model, name)[1].register_forward_hook(_fire)
        getattr(model, name)[1].register_forward_pre_hook(_fire)
    scene = scene_of(model, BATCHES)
    sets = [removal.edits for removal in scene.removals]
    counts: list[int] = []
    for reuse_policy in (
        ReusePolicy(doubt="whole ones were asked for"),
        ReusePolicy(is_trusted=True),
    ):  # trusted: no more forwards for checks
        _FIRED[0] = 0
        found = ablate(replace(scene, reuse_policy=reuse_policy), sets)
        counts.append(int(_FIRED[0]))
    assert counts[0] == counts[1] == 2 * len(BATCHES) * (7 + sum(7 - fired_less(some) for some in sets))
    names = {scene.graph.frames[frame].fqn for frame in reuse_policy.handed_on}
    assert "a.0" in names
    assert names.isdisjoint(NAMES)
    assert np.isfinite(found.change).all()


def fired_less(edits: Sequence[Any]) -> int:
    """How many of the hooked modules a set of edits takes out."""
    return sum(edit.fqn in {name, f"{name}.1"} for edit in edits for name in NAMES)


def test_a_loss_that_calls_the_model_twice_and_reads_a_hook_gets_the_same():
    def loss(model: nn.Module, item: tuple[Tensor, Tensor]) -> Tensor:
        seen: list[Tensor] = []
        handle = model.get_submodule("c").register_forward_hook(lambda module, args, out: seen.append(out))
        x, y = item
        out = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            other = model(x.flip(0)).float()
        handle.remove()
        return F.mse_loss(out, y) + (out - other.flip(0)).square().mean() + sum(t.float().mean() for t in seen)

    pairs = [(batch, rows(5, seed=7)) for batch in BATCHES]
    model = chain(make=lambda: nn.Sequential(linear(), nn.Tanh()))
    whole, found, reuse_policy = both(scene_of(model, pairs, loss=loss, example=BATCHES[0]))
    assert_same(whole, found)
    assert reuse_policy.is_trusted
    assert reuse_policy.handed_on


def test_a_loss_with_gradients_inside_runs_whole():
    def loss(model: nn.Module, item: tuple[Tensor, Tensor]) -> Tensor:
        with torch.enable_grad():
            x = item[0].clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(x).sum(), x)
        return slope.square().mean()

    pairs = [(batch, batch) for batch in BATCHES]
    whole, found, reuse_policy = both(scene_of(chain(), pairs, loss=loss, example=BATCHES[0]))
    assert_same(whole, found)
    assert not reuse_policy.handed_on


def test_what_would_take_too_much_memory_is_computed_again(monkeypatch: pytest.MonkeyPatch):
    scene = scene_of(chain(), BATCHES)
    _, _, free = both(scene)
    monkeypatch.setattr(output_reuse, "MOST_BYTES", 3 * BATCHES[0].nbytes)
    whole, found, tight = both(scene)
    assert_same(whole, found)
    assert 0 < sum(tight.handed_on.values()) < sum(free.handed_on.values())


def test_an_output_is_returned_again_for_the_same_bits_only():
    leaves: dict[int, Leaf] = {}

    def leaf(tensor: Tensor) -> Leaf:
        return leaves.setdefault(id(tensor), Leaf(tensor))

    x, y = torch.tensor([0.0, 1.0, float("nan")]), torch.ones(3)
    outcome = CachedCall((x, [2]), {"scale": 1.0}, leaf)
    outcome.finish((x, [2]), {"scale": 1.0}, {"y": y})
    assert outcome.matches((x.clone(), [2]), {"scale": 1.0}, by_value=True)
    assert not outcome.matches((x.clone(), [2]), {"scale": 1.0}, by_value=False)
    assert outcome.matches((x, [2]), {"scale": 1.0}, by_value=False)
    assert not outcome.matches((x, [3]), {"scale": 1.0}, by_value=True)
    assert not outcome.matches((x, [2]), {"scale": 1}, by_value=True)
    assert not outcome.matches((torch.tensor([-0.0, 1.0, float("nan")]), [2]), {"scale": 1.0}, by_value=True)
    assert not outcome.matches((x.double(), [2]), {"scale": 1.0}, by_value=True)
    assert outcome.rebuilt()["y"] is y
    y.add_(1)
    assert not outcome.is_fresh
    assert outcome.renew((x, [2]), {"scale": 1.0}, {"y": torch.ones(3)})
    assert outcome.is_fresh
    x.add_(1)
    assert not outcome.matches((x, [2]), {"scale": 1.0}, by_value=True)
    with pytest.raises(NotPlain):
        CachedCall((object(),), {}, leaf)


@pytest.mark.parametrize("theme", THEMES)
def test_random_nets_give_the_same_bits(theme: str):
    @settings(
        max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(nets(theme), st.integers(0, 2**16))
    def check(net: Any, seed: int) -> None:
        model, shape = net, (3, 8, 8) if net.image else (5, 3)
        batches = [torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed + i)).double() for i in range(2)]
        pruner = UniversalLayerPruner(model, example_inputs=batches[0], criterion="magnitude")
        removals = [removal for removal in pruner.removals if not removal.needs_calibration]
        sets = [removal.edits for removal in removals]
        draw = random.Random(seed)
        for _ in range(6 if len(removals) > 1 else 0):
            try:
                sets.append(pruner._planner.joints.proven(sorted(draw.sample(range(len(removals)), 2))).edits)
            except Refusal:
                continue
        sets = sets * (1 + output_reuse.FEWEST) if 0 < len(sets) < output_reuse.FEWEST else sets
        if sets:
            scene = ScoringContext(
                model=pruner._original, graph=pruner.graph, removals=[], batches=read_calibration(batches, model)
            )
            whole, found, reuse_policy = both(scene, sets)
            assert_same(whole, found)
            assert reuse_policy.is_trusted or not reuse_policy.handed_on, reuse_policy.doubt

    check()


def inputs_for(model: Any, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, model.config.image_size, model.config.image_size, generator=draw)}
    tokens = torch.randint(3, 40, (2, 7), generator=draw)
    return {"input_ids": tokens, **({"decoder_input_ids": tokens[:, :5]} if model.config.is_encoder_decoder else {})}


@pytest.mark.parametrize("family", ["gpt2", "bert", *repeats("llama", "mixtral", "deberta_v2", "t5", "swin", "lfm2")])
def test_families_give_the_same_bits(family: str):
    pytest.importorskip("transformers")
    from models.families import build  # imports transformers

    model = build(family)
    batches = [inputs_for(model, seed) for seed in _SEEDS[:2]]
    whole, found, reuse_policy = both(scene_of(model, batches))
    assert_same(whole, found)
    assert reuse_policy.is_trusted, reuse_policy.doubt
    assert reuse_policy.handed_on


class Once(nn.Module):
    """Tells in a global that it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x: Tensor) -> Tensor:
        _FIRED[0] += 1
        return self.layer(x)


def test_a_forward_that_raises_only_where_it_is_handed_something_is_run_whole():
    def forward(net: Net, x: Tensor) -> Tensor:
        before = _FIRED[0]
        x = net.stem(x)
        for name in NAMES:
            x = x + torch.tanh(getattr(net, name)(x))
        if _FIRED[0] == before:
            raise RuntimeError("nobody was called")
        return net.head(x)

    model = randomised(Net(forward, stem=Once(), **{name: Once() for name in NAMES}, head=linear())).eval()
    whole, found, reuse_policy = both(scene_of(model, BATCHES))
    assert_same(whole, found)
    assert reuse_policy.doubt


def test_an_edited_model_that_raises_does_so_in_a_whole_forward_too():
    scene = scene_of(chain(), BATCHES)
    sets = [removal.edits for removal in scene.removals]
    bad = Pass(fqn="g", position=3, keyword=None)
    with pytest.raises(DroppedTensorError, match="called without argument 3"):
        ablate(replace(scene, reuse_policy=ReusePolicy(is_trusted=True)), [*sets, (bad,)])
