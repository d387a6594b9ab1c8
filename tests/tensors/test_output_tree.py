"""Output trees: flattened, compared, stored and built again; records, too, around a removed branch."""

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
from layerprune.tensors import OutputTree
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


def total(tensor: Tensor) -> int:
    return int(tensor.sum())


ONE, TWO = torch.ones(1), torch.ones(2)


@pytest.mark.parametrize(
    "out",
    [
        ONE,
        (ONE, None),
        [ONE, [TWO, 3]],
        {"y": ONE, "n": {"h": (TWO,)}},
        Seen(ONE, (TWO,), "given"),
        Frozen(ONE, ["a", "b"]),
        Pair(ONE, TWO),
    ],
)
def test_an_output_is_flattened_and_built_again(out: Any) -> None:
    tree = OutputTree.of(out, total)
    leaves = list(tree.leaves())
    assert leaves == [1, 2][: len(leaves)]
    made = tree.build(lambda number: {1: ONE, 2: TWO}[number])
    assert type(made) is type(out)
    assert OutputTree.of(made, total) == tree
    assert repr(made) == repr(out)
    assert not tree.is_opaque


def test_leaves_come_with_their_places_and_constants_apart() -> None:
    tree = OutputTree.of({"a": (ONE, 3), "value": 4, "b": Pair(TWO, None)}, total)
    assert list(tree.places()) == [(1, ("a", 0)), (2, ("b", "scores"))]
    assert list(tree.constants()) == [3, 4, None]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((ONE, 3), (TWO, 3), True),
        ((ONE, 3), (ONE, 4), False),
        ((ONE, 1), (ONE, True), False),
        ((ONE,), [ONE], False),
        ({"a": ONE}, {"b": ONE}, False),
        (Pair(ONE, ONE), (ONE, ONE), False),
    ],
)
def test_trees_are_equal_where_containers_and_constants_are(one: Any, other: Any, same: bool) -> None:
    forms = [OutputTree.of(out, lambda tensor: "tensor") for out in (one, other)]
    assert (forms[0] == forms[1]) is same


def test_what_is_no_constant_can_be_made_one_or_refused() -> None:
    tree = OutputTree.of((ONE, torch.float32), total, OutputTree.constant)
    assert tree.build(lambda number: ONE) == (ONE, torch.float32)

    def refuse(value: Any) -> Any:
        raise TypeError(value)

    with pytest.raises(TypeError, match="float32"):
        OutputTree.of((ONE, [torch.float32]), total, refuse)


@pytest.mark.parametrize(
    "structure",
    [
        "tensor",
        "argument",
        {"argument": [1, "mask"]},
        {"tuple": ["argument", {"value": None}]},
        {"list": [{"dict": {"y": "tensor", "n": {"value": 1.5}}}]},
        {"record": {"class": [__name__, "Pair"], "fields": {"scores": "tensor", "hidden": {"value": None}}}},
    ],
)
def test_the_form_that_plans_hold_is_read_and_written(structure: Any) -> None:
    tree = OutputTree.from_json(structure)
    assert tree.to_json() == structure == json.loads(json.dumps(structure))
    assert OutputTree.from_json(tree.to_json()) == tree


@pytest.mark.parametrize(
    "structure",
    [
        *(None, 3, "tensors", {}, {"tuple": "tensor"}, {"tuple": [3]}, {"list": {}}, {"dict": []}, {"set": []}),
        *({"value": []}, {"argument": [None, None]}, {"argument": [-1, None]}, {"argument": [0]}),
        *({"tuple": [], "list": []}, {"record": {"class": ["a", ""], "fields": {}}}),
        {"record": {"class": ["a", "b"], "fields": []}},
    ],
)
def test_another_form_is_refused(structure: Any) -> None:
    with pytest.raises(DroppedTensorError, match="cannot be rebuilt"):
        OutputTree.from_json(structure)


def test_containers_lie_within_each_other_as_deep_as_is_allowed() -> None:
    assert list(OutputTree.from_json({"tuple": [{"tuple": ["tensor"]}]}, 2).leaves()) == ["tensor"]
    with pytest.raises(DroppedTensorError):
        OutputTree.from_json({"tuple": [{"tuple": ["tensor"]}]}, 1)


def test_what_holds_more_than_its_fields_or_is_not_found_by_name_is_opaque() -> None:
    more = Seen(ONE)
    more.extra = TWO  # type: ignore[attr-defined]

    @dataclass
    class Local:
        scores: Tensor

    for out in (more, Local(rows()), {3: ONE}, torch.return_types.max((rows(), rows()))):
        tree = OutputTree.of((out, None), total)
        assert tree.is_opaque
        with pytest.raises(DroppedTensorError, match=f"{type(out).__name__} cannot be rebuilt"):
            tree.build(lambda number: number)
    assert list(OutputTree.of(more, total).leaves()) == [1, 2]  # the tensors inside are known


@pytest.mark.parametrize(
    "name", [["os", "system"], ["layerprune.absent", "Thing"], [__name__, "Encoder"], [__name__, "Pair.scores"]]
)
def test_nothing_but_records_is_built(name: list[str]) -> None:
    tree = OutputTree.from_json({"record": {"class": name, "fields": {"scores": "tensor"}}})
    with pytest.raises(DroppedTensorError, match="no such record loaded"):
        tree.build(lambda leaf: dropped(["add"]))


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
