"""From where functions are called, and that a proof goes by it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerprune import UniversalLayerPruner
from layerprune.graph import Refusal
from layerprune.removals.lowering import _Lowerer
from layerprune.tensors import caller
from oracle.test_removals_by_oracle import GivenBack


class Asking(nn.Module):
    """Asks from two places, and from a loop, where it is called from."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([Inner(), Inner()])

    def forward(self, names: dict[int, str]) -> list[str]:
        return [helped(names), helped(names), *(inner(names) for inner in self.inner)]


class Inner(nn.Module):
    def forward(self, names: dict[int, str]) -> str:
        return helped(names)


def helped(names: dict[int, str]) -> str:
    return caller(names)


def test_a_place_is_the_same_in_every_run_and_another_for_every_call() -> None:
    model = Asking()
    names = {id(module): name or "whole" for name, module in model.named_modules()}
    first, again = model(names), model(names)
    assert first == again
    assert len(set(first)) == 4
    assert [place.split()[0] for place in first] == ["whole", "whole", "inner.0", "inner.1"]


class Answering:
    """Is added to numbers, and knows from where."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names

    def __radd__(self, other: object) -> list[str]:
        return [caller(self.names)]


class Summing(nn.Module):
    def forward(self, names: dict[int, str]) -> list[str]:
        return sum(item for item in [Answering(names)])


def test_a_place_stays_what_it_is_when_python_runs_what_it_has_seen_often_in_fewer_steps() -> None:
    model = Summing()
    names = {id(model): "whole"}
    assert len({place for _ in range(50) for place in model(names)}) == 1


def test_where_no_known_module_runs_there_is_no_place() -> None:
    assert helped({}) == ""
    assert Inner()({}) == ""


def test_layers_that_merge_know_from_where() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.f(x)
            x += self.f(x)
            return x.relu()

    graph = UniversalLayerPruner(Sums(), example_inputs=torch.randn(2, 4)).graph
    sums = [layer.site for layer in graph.layers if layer.type_name in ("add", "iadd")]
    assert len(sums) == len(set(sums)) == 2
    assert all(sums)
    assert [layer.site for layer in graph.layers if layer.type_name == "relu"] == [""]


def around(block: nn.Module, x: Tensor) -> Tensor:
    return x + block(x)


def test_a_sum_in_a_function_that_gets_the_module_is_the_same_without_that() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.f, self.g, self.head = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = around(self.f, self.stem(x))
            return self.head((lambda block, x: block(x) + x)(self.g, x))

    pruner = UniversalLayerPruner(Around(), example_inputs=torch.randn(2, 4))
    assert [(removal.kind, removal.groups) for removal in pruner.removals] == [("branch", ("f",)), ("branch", ("g",))]


def test_a_merge_elsewhere_does_not_make_up_for_one_that_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With this, a realisation is wrong as one once was: of two sums the number is right, and one is another."""
    monkeypatch.setattr(_Lowerer, "is_replaced_outside", lambda self, value, frame: False)
    pruner = UniversalLayerPruner(GivenBack(), example_inputs=torch.randn(2, 4))
    assert [removal.groups for removal in pruner.removals] == [("f",), ("block.f",)]
    with pytest.raises(Refusal, match="meets a sum that is no part of this removal"):
        pruner._planner.joints.proven([0, 1])
