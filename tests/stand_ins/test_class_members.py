"""Members: a removed layer's stand-in keeps the methods that need no weight of it, and says so of the others."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.edits import Drop, Pass
from layerprune.errors import DroppedTensorError, RemovedPartError
from layerprune.stand_ins import DroppedBranch, PassThrough
from layerprune.surgery import operate
from models.nets import Net, linear, rows, run


@dataclass
class Settings:
    heads: int = 2
    size: int = 4


class Mixer(nn.Module):
    """A layer that its host asks for more than its forward."""

    kind = "mixer"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.source = [-1, 6]
        self.cache: Tensor | None = None
        self.weight, self.inner = nn.Parameter(torch.eye(8)), linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x @ self.weight)

    def build_cache(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.settings.heads, self.settings.size)

    def build_two(self, batch: int) -> list[Tensor]:
        return [self.build_cache(batch) for _ in range(2)]

    def resized(self, x: Tensor, length: int) -> Tensor:
        return nn.functional.interpolate(x[:, None], length)[:, 0]

    @property
    def heads(self) -> int:
        return self.settings.heads

    @staticmethod
    def twice(x: int) -> int:
        return 2 * x

    @classmethod
    def named(cls) -> str:
        return "mixer"

    def step(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def step_twice(self, x: Tensor) -> Tensor:
        return self.step(self.step(x))

    def count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def inner_width(self) -> int:
        return self.inner.in_features

    def extra_repr(self) -> str:
        return super().extra_repr()


class Block(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.mixer = Mixer(settings)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(x)


def pruned() -> nn.Module:
    """A dropped layer, and a block that is handed past with one inside."""
    settings = Settings()
    model = Net(lambda net, x: net.two(net.one(x)), one=Block(settings), two=Block(settings))
    operate(model, [Drop(fqn="one.mixer", merges=("add",)), Pass(fqn="two", position=0, keyword="x", others=True)])
    assert isinstance(model.one.mixer, DroppedBranch)
    assert isinstance(model.two, PassThrough)
    return model


@pytest.fixture(params=["as pruned", "copied", "pickled"])
def mixers(request: pytest.FixtureRequest) -> list[Any]:
    model = pruned()
    if request.param == "copied":
        model = copy.deepcopy(model)
    one, two = model.one, model.two
    if request.param == "pickled":
        one, two = pickle.loads(pickle.dumps([one, two]))
    return [one.mixer, two.mixer]


def test_methods_without_weights_are_kept(mixers: list[Any]) -> None:
    for mixer in mixers:
        assert mixer.build_cache(3).shape == (3, 2, 4)
        assert [cache.shape for cache in mixer.build_two(1)] == [(1, 2, 4)] * 2
        assert mixer.resized(rows(), 4).shape == (4, 4)
        assert (mixer.heads, mixer.twice(3), mixer.named(), mixer.kind) == (2, 6, "mixer", "mixer")


def test_lists_and_flags_are_kept_and_new_attributes_may_be_set(mixers: list[Any]) -> None:
    for mixer in mixers:
        assert mixer.source == [-1, 6]
        mixer.cache = torch.zeros(2)
        assert mixer.cache.shape == (2,)


@pytest.mark.parametrize("name", ["step", "step_twice", "count", "inner_width", "never"])
def test_others_are_gone_and_the_error_names_the_layer_and_the_remedy(mixers: list[Any], name: str) -> None:
    for mixer, place in zip(mixers, ("one.mixer", "two.mixer"), strict=True):
        assert not hasattr(mixer, name)
        with pytest.raises(RemovedPartError, match=rf"removed '{place}'.*no '{name}'; protect=\['{place}'\] keeps it"):
            getattr(mixer, name)


def test_the_error_is_one_of_an_attribute_and_of_a_dropped_tensor() -> None:
    assert issubclass(RemovedPartError, AttributeError)
    assert issubclass(RemovedPartError, DroppedTensorError)


def test_a_class_that_pickle_does_not_find_keeps_nobody_from_saving() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

        def number(self) -> int:
            return 3

    model = nn.Sequential(Local())
    operate(model, [Drop(fqn="0", merges=("add",))])
    assert model[0].number() == 3
    assert not hasattr(pickle.loads(pickle.dumps(model))[0], "number")


class Cached(nn.Linear):
    """A layer by itself that its host asks for a cache."""

    def build_cache(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.in_features)


def test_a_chain_layer_that_hosts_call_is_no_bare_identity() -> None:
    """An identity would have none of its methods; a layer without any is torch's own one."""
    model = nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU())
    net = Net(lambda net, x: net.head(net.cached(net.body(net.plain(x)))), plain=linear(), body=model)
    net.cached, net.head = Cached(8, 8), linear()
    pruner = UniversalLayerPruner(net, example_inputs=rows(), protect_io=False)
    small = pruner.prune(groups=["cached"])
    assert isinstance(small.cached, PassThrough)
    assert small.cached.build_cache(1).shape == (1, 8)
    assert pruner.plan(groups=["cached"]).needs_layerprune
    assert isinstance(pruner.prune(groups=["plain"]).plain, nn.Identity)
    assert run(small, rows()).shape == (4, 8)


def test_a_tool_that_refuses_a_stand_in_prints_which_layer_was_removed() -> None:
    model = pruned()
    assert repr(model.one.mixer) == "DroppedBranch(out of add; layerprune removed 'one.mixer')"
    assert repr(model.two) == "PassThrough(argument x; layerprune removed 'two')"


class Fusing(nn.Module):
    """Has three projections, and a method that joins their weights, as diffusion models' attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        return self.project(scores.softmax(-1) @ self.value(x))

    def project(self, x: Tensor) -> Tensor:
        return self.out(x)

    @torch.no_grad()
    def fused(self) -> Tensor:
        return torch.cat([self.query.weight.data, self.key.weight.data, self.value.weight.data])

    def init_out(self) -> None:
        nn.init.zeros_(self.out.weight)


def test_a_part_whose_weights_its_host_reads_elsewhere_leaves_with_the_host_only() -> None:
    model = Net(lambda net, x: net.head(x + net.attention(net.stem(x))), stem=linear(), head=linear())
    model.attention = Fusing()
    pruner = UniversalLayerPruner(model, example_inputs=rows())
    parts = {f"attention.{part}" for part in ("query", "key", "value")}
    found = {removal.groups for removal in pruner.removals}
    assert all(parts & {*groups} in (set(), parts) for groups in found)
    assert any(parts <= {*groups} for groups in found)
    assert ("attention.out",) in found  # its setting up reads it, no more
