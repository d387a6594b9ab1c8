"""The oracle: a pruned model computes what the untouched model computes with tensors substituted on the fly.

Surgery and simulation (``simulation.py``) share nothing but the layer graph. They must agree to rounding in float64, on
random weights and on inputs of another batch size than the pruner saw.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.edits import Drop, Edit, Slice
from layerprune.errors import CriticalGroupError, DroppedTensorError
from layerprune.graph import Cut, Refusal
from layerprune.plan import PruningPlan
from layerprune.proof import Removal
from layerprune.removals import lower_removal
from layerprune.surgery import applied
from oracle.checks import MOVED, TOLERANCE, Batch, Oracle, distance, num_params, run
from oracle.random_nets import THEMES, nets, randomise
from oracle.simulation import simulate

# ---- random graphs ----------------------------------------------------------------------------------------------

#: What each theme is there for: the kinds of removals of which it must yield some that move the output. Only what is
#: common in it: hypothesis draws constants from whatever modules are loaded, so a theme's nets are not always the same.
_EXPECTED = {
    "chain": {"bypass", "block", "projection"},
    "residual": {"branch", "bypass", "block"},
    "gate": {"gate", "branch"},
    "concat": {"concat"},
    "dense": {"concat", "several"},
    "tokens": {"branch", "gate", "bypass"},
    "odd": {"branch", "bypass", "block", "gate"},
    "mixed": {"branch", "bypass", "block", "gate", "concat"},
}
_NUM_NETS = 16  # of each theme: 128 in all
_NUM_NETS_BEFORE_A_RELEASE = 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_nets", [_NUM_NETS, pytest.param(_NUM_NETS_BEFORE_A_RELEASE, marks=pytest.mark.reliability)]
)
@pytest.mark.parametrize("theme", THEMES)
def test_a_random_graph_prunes_to_what_the_simulation_computes(theme: str, num_nets: int) -> None:
    moved: Counter[str] = Counter()

    @settings(
        max_examples=num_nets,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],  # shrinking takes minutes; add Phase.shrink for a small failing net
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(nets(theme), st.integers(0, 2**16))
    def check(net: nn.Module, seed: int) -> None:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        shape = (3, 8, 8) if net.image else (5, 3)
        oracle = Oracle(net, ((_randn(2, *shape),), {}), ((_randn(3, *shape),), {}))
        removals = oracle.pruner.removals
        for removal in rng.sample(removals, min(len(removals), 5)):
            oracle.check_removal(removal)
        for plan in _random_plans(oracle.pruner, rng):
            oracle.check_plan(plan)
        moved.update(oracle.moved)

    check()
    least = 3 if num_nets == _NUM_NETS_BEFORE_A_RELEASE else 1
    assert all(moved[kind] >= least for kind in _EXPECTED[theme]), moved


def _random_plans(pruner: UniversalLayerPruner, rng: random.Random) -> list[PruningPlan]:
    """A plan within a budget, and one of groups named at random."""
    plans = [pruner.plan(max_param_reduction=rng.choice([0.1, 0.25, 0.4, 0.6, 0.9]))]
    safe = [group.name for group in pruner.groups if group.can_remove and not group.needs_calibration]
    for size in (len(safe), 3, 2):
        try:
            plans.append(pruner.plan(groups=rng.sample(safe, min(len(safe), size))))
        except CriticalGroupError:  # they exclude each other
            continue
        break
    return plans


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# ---- real architectures -----------------------------------------------------------------------------------------

#: Of which the zoo checks their like at full depth.
_IN_THE_ZOO = {
    *("resnet18", "googlenet", "mobilenet_v3_small", "shufflenet_v2_x1_0", "densenet121"),
    *("convnext_tiny", "vit_b_16", "swin_t", "resnet50", "efficientnet_b0"),
}
#: How many removals of a large model are tried at most: evenly spread over the forward, each kind in its turn.
_MOST = 10
_LARGE = 1_000_000  # parameters; of smaller models every removal is tried


def _images(size: int) -> Callable[[int], Batch]:
    return lambda batch: ((_randn(batch, 3, size, size),), {})


def _tokens(**lengths: int) -> Callable[[int], Batch]:
    """Token ids; sequences grow with the batch, so that the fresh inputs differ in length, too."""

    def make(batch: int) -> Batch:
        ids = {name: torch.randint(0, 40, (batch, length + 2 * batch)) for name, length in lengths.items()}
        mask = torch.ones_like(ids["input_ids"])
        mask[0, -2:] = 0
        return (), {**ids, "attention_mask": mask}

    return make


def _torchvision(name: str, size: int = 64, **options: Any) -> Callable[[], tuple[nn.Module, Callable[[int], Batch]]]:
    def build() -> tuple[nn.Module, Callable[[int], Batch]]:
        torchvision = pytest.importorskip("torchvision")
        return getattr(torchvision.models, name)(weights=None, **options), _images(size)

    return build


def _transformers(
    kind: str, config: str, make: Callable[[int], Batch], **sizes: Any
) -> Callable[[], tuple[nn.Module, Callable[[int], Batch]]]:
    def build() -> tuple[nn.Module, Callable[[int], Batch]]:
        transformers = pytest.importorskip("transformers")
        return getattr(transformers, kind)(getattr(transformers, config)(**sizes)), make

    return build


def _vgg() -> tuple[nn.Module, Callable[[int], Batch]]:
    """VGG-11 with a classifier of a hundredth of the size, whose first layer still reads all that is flattened."""
    model, make = _torchvision("vgg11")()
    model.classifier = nn.Sequential(
        nn.Linear(512 * 49, 48), nn.ReLU(), nn.Dropout(), nn.Linear(48, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5)
    )
    return model, make


_SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
_TEXT = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

ARCHITECTURES: Mapping[str, Callable[[], tuple[nn.Module, Callable[[int], Batch]]]] = {
    "vit_b_16": _torchvision("vit_b_16", image_size=64),
    "resnet18": _torchvision("resnet18"),
    "resnet50": _torchvision("resnet50"),
    "vgg11": _vgg,
    "densenet121": _torchvision("densenet121"),
    "googlenet": _torchvision("googlenet", init_weights=False),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "shufflenet_v2_x1_0": _torchvision("shufflenet_v2_x1_0"),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "convnext_tiny": _torchvision("convnext_tiny"),
    "swin_t": _torchvision("swin_t"),
    "llama": _transformers(
        "LlamaForCausalLM", "LlamaConfig", _tokens(input_ids=4),
        **_SMALL, **_TEXT, num_key_value_heads=1, use_cache=False,
    ),
    "gpt2": _transformers(
        "GPT2LMHeadModel", "GPT2Config", _tokens(input_ids=4), **_TEXT, n_embd=16, n_layer=3, n_head=2, use_cache=False
    ),
    "bert": _transformers("BertModel", "BertConfig", _tokens(input_ids=4), **_SMALL, **_TEXT),
    "t5": _transformers(
        "T5ForConditionalGeneration", "T5Config", _tokens(input_ids=5, decoder_input_ids=3),
        **_TEXT, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, use_cache=False,
    ),
    "vit": _transformers("ViTForImageClassification", "ViTConfig", _images(16), **_SMALL, image_size=16, patch_size=4),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.reliability] * (name in _IN_THE_ZOO)) for name in ARCHITECTURES]
)
def test_an_architecture_prunes_to_what_the_simulation_computes(name: str) -> None:
    torch.manual_seed(0)
    model, make = ARCHITECTURES[name]()
    oracle = Oracle(randomise(model.double(), seed=0).eval(), make(2), make(3))
    large = num_params(model) > _LARGE
    removals = _spread_out(oracle.pruner.removals) if large else oracle.pruner.removals
    for removal in removals:
        oracle.check_removal(removal)
    assert oracle.moved.total() == len(removals), "every removal moves the output"
    oracle.check_plan(oracle.pruner.plan(max_param_reduction=0.3))


def _spread_out(removals: Sequence[Removal]) -> list[Removal]:
    """At most ``_MOST`` removals, of each kind evenly from the first on."""
    kinds = {kind: [r for r in removals if r.kind == kind] for kind in dict.fromkeys(r.kind for r in removals)}
    share = max(1, _MOST // len(kinds))
    return [some[i * len(some) // n] for some in kinds.values() for n in [min(share, len(some))] for i in range(n)]


# ---- networks that the oracle once caught pruned wrongly ------------------------------------------------------------


class WrittenBehindTwo(nn.Module):
    """Behind two modules that a bypass passes through, a function writes in place: into what was passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        return self.head(x + self.g(self.norm(self.f(x)).relu_()))


class Biased(nn.Module):
    """Hands one of its arguments on next to its result, as T5's attention does with the position bias."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        bias = x.cumsum(-1) if bias is None else bias
        y = self.f(x) + bias
        return y.reshape(y.shape[0], -1), bias


class HandedOn(nn.Module):
    """Three blocks that hand a tensor on: what is true of two of them gone together need not be of one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(Biased() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self.stem(x), None
        for block in self.blocks:
            y, bias = block(x, bias)
            x = x + y
        return self.head(x)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.f(x), self.g(x)


class WrittenInPart(nn.Module):
    """Writes a sum of two results of one module into a part of a tensor: a dropped one must not get lost there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.two, self.head = nn.Linear(4, 4), Two(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.two(x)
        out = x.clone()
        out[:, :1] = (x + a + b)[:, :1]
        return self.head(out + x)


class WithInput(nn.Module):
    """Returns its input next to its result."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"made": self.f(x), "given": x}


class GivenBack(nn.Module):
    """A module gives a sum back that may have been replaced: with the module gone, what replaces it is handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.block = WithInput()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.f(x)
        found = self.block(x)
        return self.head(x + (found["made"] + found["given"]))


class WrittenForNobody(nn.Module):
    """Writes into a tensor when all is done with it: not so where a sum hands that very tensor on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.f(x)
        F.relu_(x)
        return self.head(y)


class Doubled(nn.Module):
    """Adds a tensor to itself: of such a sum no operand can be left out. A sum that nobody reads hides the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.f(x)
        torch.add(y, x)
        return self.head(x + x + y)


class AddsToPart(nn.Module):
    """Adds to all rows of a stack but the first, in place: what it returns is the stack, not the rows written last."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.f(x)
        x[1:] += self.g(x[0])
        return x


class Stacked(nn.Module):
    """Blocks that pass a stack of three tensors on, as AltUp does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(AddsToPart() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([self.stem(x)] * 3)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(0))


def test_a_block_that_writes_into_a_part_of_its_result_leaves_whole() -> None:
    pruner = UniversalLayerPruner(Stacked(), example_inputs=_randn(2, 4).float())
    shapes = {value.shape for frame in pruner.graph.frames if frame.fqn.startswith("blocks.") for value in
              (pruner.graph.values[v] for v in frame.outputs) if frame.fqn.count(".") == 1}  # fmt: skip
    assert shapes == {(3, 2, 4)}
    assert sum(removal.kind == "block" for removal in pruner.removals) == 3


@pytest.mark.parametrize(
    "cls", [WrittenBehindTwo, HandedOn, WrittenInPart, Stacked, GivenBack, WrittenForNobody, Doubled]
)
def test_a_network_once_pruned_wrongly_is_pruned_rightly(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    oracle = Oracle(randomise(cls().double(), seed=0).eval(), ((_randn(2, 4),), {}), ((_randn(3, 4),), {}))
    assert oracle.pruner.removals
    for removal in oracle.pruner.removals:
        oracle.check_removal(removal)
        oracle.check_training(removal.edits)
    for share in (0.25, 0.5, 0.75):
        oracle.check_plan(oracle.pruner.plan(max_param_reduction=share))


def test_values_that_one_module_returns_can_be_substituted_together() -> None:
    torch.manual_seed(0)
    oracle = Oracle(randomise(WrittenInPart().double(), seed=0).eval(), ((_randn(2, 4),), {}), ((_randn(3, 4),), {}))
    graph = oracle.pruner.graph
    made = {layer.fqn: layer.outputs[0] for layer in graph.layers if layer.is_module}
    cut = Cut({made["two.f"]: made["stem"], made["two.g"]: made["stem"]})
    modules = dict(oracle.model.named_modules())
    try:
        with applied(oracle.model, lower_removal(graph, modules, cut).edits):
            pruned = run(oracle.model, oracle.fresh)
    except (Refusal, DroppedTensorError):
        return  # an honest refusal
    assert distance(pruned, simulate(oracle.model, graph, cut, *oracle.fresh[0])) <= TOLERANCE


# ---- the oracle itself ------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """A concat of two branches, a depthwise convolution on it, an in-place sum behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.a = nn.Conv2d(4, 2, 3, padding=1)
        self.b = nn.Conv2d(4, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.fuse = nn.Conv2d(4, 4, 1)
        self.f = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.fuse(self.depthwise(F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))))
        out = self.f(F.relu(x))
        out += x
        return self.head(out.mean((2, 3)))

    def without_a(self, x: Tensor) -> Tensor:
        """What is left without ``a``, by hand: only the last two channels of all that reads the concat."""
        norm, deep = self.norm, self.depthwise
        x = self.stem(x)
        h = F.batch_norm(self.b(x), norm.running_mean[2:], norm.running_var[2:], norm.weight[2:], norm.bias[2:])
        h = F.conv2d(F.relu(h), deep.weight[2:], deep.bias[2:], padding=1, groups=2)
        x = F.conv2d(h, self.fuse.weight[:, 2:], self.fuse.bias)
        return self.head((self.f(F.relu(x)) + x).mean((2, 3)))

    def without_f(self, x: Tensor) -> Tensor:
        """What is left without ``f``, by hand: the in-place sum hands its other operand on."""
        x = self.stem(x)
        x = self.fuse(self.depthwise(F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def branches() -> Oracle:
    torch.manual_seed(0)
    image = _images(8)
    return Oracle(randomise(Branches().double(), seed=0).eval(), image(2), image(3))


def _removal(oracle: Oracle, kind: str, group: str) -> Removal:
    return next(r for r in oracle.pruner.removals if r.kind == kind and r.groups == (group,))


@pytest.mark.parametrize(("kind", "group", "by_hand"), [("concat", "a", "without_a"), ("branch", "f", "without_f")])
def test_the_simulation_computes_what_a_network_written_by_hand_does(
    branches: Oracle, kind: str, group: str, by_hand: str
) -> None:
    (x,), _ = branches.fresh
    simulated = simulate(branches.model, branches.pruner.graph, _removal(branches, kind, group).cut, x)
    with torch.no_grad():
        expected = getattr(branches.model, by_hand)(x)
    assert distance(simulated, expected) < 1e-14
    assert distance(simulated, branches.original) > MOVED


def test_the_simulation_of_no_removal_is_the_model(branches: Oracle) -> None:
    assert distance(simulate(branches.model, branches.pruner.graph, Cut(), *branches.fresh[0]), branches.original) == 0


_CORRUPTIONS: Mapping[str, Callable[[Edit], Edit]] = {
    "the other channels are sliced": lambda e: (
        e.model_copy(update={"dropped": ((0, 2),)}) if isinstance(e, Slice) and e.fqn == "fuse" else e
    ),
    "the other operand is dropped": lambda e: e.model_copy(update={"fqn": "a"}) if isinstance(e, Drop) else e,
    "one reader's channels stay in their old order": lambda e: (
        e.model_copy(update={"dropped": ((1, 3),)}) if isinstance(e, Slice) and e.fqn == "norm" else e
    ),
}


@pytest.mark.parametrize("corruption", _CORRUPTIONS)
def test_the_oracle_fails_when_an_edit_is_wrong(branches: Oracle, corruption: str) -> None:
    removal = _removal(branches, "concat", "b")
    branches.check_removal(removal)
    wrong = [_CORRUPTIONS[corruption](edit) for edit in removal.edits]
    assert wrong != list(removal.edits)
    with applied(branches.model, wrong):
        pruned = run(branches.model, branches.fresh)
    with pytest.raises(AssertionError, match="from the simulation"):
        branches.check_output(pruned, [removal])


def test_the_oracle_fails_when_nothing_is_removed(branches: Oracle) -> None:
    for removal in branches.pruner.removals:
        with pytest.raises(AssertionError, match="from the simulation"):
            branches.check_output(branches.original, [removal])


def test_the_oracle_fails_when_the_original_changes(branches: Oracle) -> None:
    with torch.no_grad():
        branches.model.norm.running_mean[0] += 1e-12
    with pytest.raises(AssertionError, match=r"norm\.running_mean.* has changed"):
        branches.check_unchanged()
