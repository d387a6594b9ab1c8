"""Output structures: records, which are named tuples and dataclasses, are built again around a removed branch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from layerprune import PruningPlan, UniversalLayerPruner
from layerprune.errors import DroppedTensorError, PlanError
from layerprune.stand_ins import DroppedTensor, dropped
from layerprune.tensors import build, described, parts_of
from models.nets import linear, randomised, rows, run, tokens

MADE: list[str] = []


@dataclass
class Seen:
    """What an attention reports beside its result."""

    scores: Tensor | None = None
    values: tuple[Tensor, ...] = ()
    kind: str = "attend"

    def __post_init__(self) -> None:
        MADE.append("by its constructor")


@dataclass(frozen=True, slots=True)
class Frozen:
    scores: Tensor
    names: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    scores: Tensor
    hidden: Tensor | None


class Attention(nn.Module):
    """Returns its result and a record of how it came to it, as x-transformers' does."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.query, self.value, self.out = linear(), linear(), linear()

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        scores = (self.query(x) @ x.transpose(-1, -2)).softmax(-1)
        values = self.value(x)
        record: Any = {
            "dataclass": lambda: Seen(scores, (values,)),
            "frozen": lambda: Frozen(scores, ["scores"]),
            "named": lambda: Pair(scores, None),
            "object": lambda: SimpleNamespace(scores=scores),
        }[self.form]()
        return self.out(scores @ values), record


class Encoder(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem, self.head = linear(), linear(8, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.layers = nn.ModuleList(Attention(form) for _ in range(2))
        self.records: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        records = []
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y, record = layer(norm(x))
            records.append(record)
            x = x + y
        return self.head(x)


PARTS = ["layers.0.query", "layers.0.value", "layers.0.out"]


@pytest.mark.parametrize("form", ["dataclass", "frozen", "named"])
def test_an_attention_that_returns_a_record_leaves_as_a_whole(form: str) -> None:
    model = randomised(Encoder(form))
    pruner = UniversalLayerPruner(model, example_inputs=tokens())
    plan = PruningPlan.from_json(pruner.plan(groups=PARTS).to_json())
    small = plan.apply(model)
    with torch.no_grad():
        x = model.stem(tokens(3))
        expected = model.head(x + model.layers[1](model.norms[1](x))[0])
    assert torch.allclose(run(small, tokens(3)), expected, atol=1e-6)
    MADE.clear()
    out, record = small.layers[0](tokens())
    assert isinstance(out, DroppedTensor)
    assert type(record).__name__ == {"dataclass": "Seen", "frozen": "Frozen", "named": "Pair"}[form]
    assert isinstance(record.scores, DroppedTensor)
    assert MADE == []  # no code of the class runs


def test_another_object_is_refused() -> None:
    pruner = UniversalLayerPruner(randomised(Encoder("object")), example_inputs=tokens())
    assert not any(set(PARTS) <= {*removal.groups} for removal in pruner.removals)


def numbers(tensor: Tensor) -> tuple[int, ...]:
    return (int(tensor.sum()),)


@pytest.mark.parametrize(
    "record",
    [
        Seen(torch.ones(1), (torch.ones(2), torch.ones(3)), "given"),
        Frozen(torch.ones(1), ["a", "b"]),
        Pair(torch.ones(1), torch.ones(2)),
    ],
)
def test_a_record_is_written_down_and_built_again(record: Any) -> None:
    structure, values = described((record, 3), numbers)
    assert values == tuple(int(t.sum()) for t in (torch.ones(n) for n in (1, 2, 3)))[: len(values)]
    structure = json.loads(json.dumps(structure))
    (found, three) = build(_tokens(structure), token := dropped(["add"]), None)
    assert three == 3
    assert type(found) is type(record)
    assert found.scores is token
    kept = {key: item for key, item in parts_of(found)[1].items() if isinstance(item, (str, list))}
    assert kept == {key: item for key, item in parts_of(record)[1].items() if isinstance(item, (str, list))}


def _tokens(structure: Any) -> Any:
    """A structure with dropped tensors at its leaves."""
    if isinstance(structure, dict):
        return {key: item if key in ("value", "class") else _tokens(item) for key, item in structure.items()}
    if isinstance(structure, list):
        return [_tokens(item) for item in structure]
    return "tensor"


def test_what_holds_more_than_its_fields_or_is_not_found_by_name_is_no_record() -> None:
    more = Seen()
    more.extra = 1  # type: ignore[attr-defined]

    @dataclass
    class Local:
        scores: Tensor

    assert parts_of(more)[0] == parts_of(Local(rows()))[0] == ""
    assert parts_of(torch.return_types.max((rows(), rows())))[0] == ""


@pytest.mark.parametrize(
    "name", [["os", "system"], ["layerprune.absent", "Thing"], [__name__, "Encoder"], [__name__, "Pair.scores"]]
)
def test_nothing_but_records_is_built(name: list[str]) -> None:
    structure = {"record": {"class": name, "fields": {"scores": "tensor"}}}
    with pytest.raises(DroppedTensorError, match="no such record loaded"):
        build(structure, dropped(["add"]), None)


@pytest.mark.parametrize(
    "inner",
    [
        {"class": "os.system", "fields": {}},
        {"class": ["os", 3], "fields": {}},
        {"class": ["os", "system"]},
        {"class": ["os", "system"], "fields": {"a": "something"}},
        {"class": ["os", "system"], "fields": {}, "more": 1},
        [],
    ],
)
def test_a_plan_with_a_malformed_record_is_refused(inner: Any) -> None:
    model = randomised(Encoder("named"))
    plan = UniversalLayerPruner(model, example_inputs=tokens()).plan(groups=PARTS)
    data = json.loads(plan.to_json())
    _replace_records(data, inner)
    with pytest.raises(PlanError):
        PruningPlan.from_json(json.dumps(data))


def _replace_records(value: Any, inner: Any) -> None:
    if isinstance(value, dict):
        if "record" in value:
            value["record"] = inner
        for item in list(value.values()):
            _replace_records(item, inner)
    elif isinstance(value, list):
        for item in value:
            _replace_records(item, inner)
