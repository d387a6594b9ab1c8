"""A plan replays in another process and years later; other models and hostile plans are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from layerprune import PruningPlan, UniversalLayerPruner
from layerprune.errors import PlanError
from layerprune.plan.plan import SCHEMA
from models.nets import ExampleModel, Photograph, linear, randomised, rows, weight_hash

CORPUS = Path(__file__).parents[1] / "corpus" / "plan"
HERE = Path(__file__).parents[1]


# ---- the same everywhere ---------------------------------------------------------------------------------------------

REPLAY = """
import sys
sys.path.insert(0, sys.argv[1])
from layerprune import PruningPlan
from models.nets import ExampleModel, randomised, weight_hash
text = open(sys.argv[2], encoding="utf-8").read()
for _ in range(int(sys.argv[3])):
    print(weight_hash(PruningPlan.from_json(text).apply(randomised(ExampleModel()))))
"""


def test_twenty_replays_in_two_processes_give_one_hash():
    found = set()
    for _ in range(2):
        command = [sys.executable, "-c", REPLAY, str(HERE), str(CORPUS / "schema-3.json"), "10"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = done.stdout.split()
        assert len(lines) == 10
        found |= set(lines)
    plan = PruningPlan.from_json((CORPUS / "schema-3.json").read_text())
    assert found == {weight_hash(plan.apply(randomised(ExampleModel())))}
    assert weight_hash(randomised(ExampleModel())) not in found


# ---- older schemas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schema", "num_params"),
    [
        ("schema-1-first", 1, 29_450),
        ("schema-1", 1, 20_234),
        ("schema-2", 2, 20_234),
        ("schema-3", 3, 20_234),
        ("schema-4", 4, 20_234),
        ("schema-5", 5, 20_234),
        ("schema-6", 6, 20_234),
        ("schema-6-rounds", 6, 20_234),
    ],
)
def test_plans_that_older_releases_wrote_are_read_and_carried_out(monkeypatch, name, schema, num_params):
    """The files are what the library of that day wrote; a schema never loses its file here."""
    monkeypatch.setattr(ExampleModel, "__module__", "nets")  # where it lay then: the first schema knew models by paths
    plan = PruningPlan.from_json((CORPUS / f"{name}.json").read_text())
    assert plan.schema_version == schema
    pruned = plan.apply(randomised(ExampleModel()))
    assert sum(p.numel() for p in pruned.parameters()) == num_params
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_the_older_plans_say_the_same_as_todays():
    plans = [PruningPlan.from_json((CORPUS / f"schema-{n}.json").read_text()) for n in range(1, SCHEMA + 1)]
    assert len({weight_hash(plan.apply(randomised(ExampleModel()))) for plan in plans}) == 1


def test_a_plan_of_a_newer_schema_says_what_to_do():
    data = json.loads((CORPUS / f"schema-{SCHEMA}.json").read_text())
    with pytest.raises(
        PlanError, match=f"schema {SCHEMA + 1}, this layerprune reads up to {SCHEMA}: upgrade layerprune"
    ):
        PruningPlan.from_json(json.dumps(data | {"schema_version": SCHEMA + 1, "new": True}))


# ---- other models ----------------------------------------------------------------------------------------------------


def changed(change):
    def make():
        model = ExampleModel()
        change(model)
        return model

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            changed(lambda net: setattr(net, "fc", linear(128, 11))),
            r"'fc' is \(Linear weight\(11, 128\) float32, .*in the plan's model \(Linear weight\(10, 128\)",
        ),
        (changed(lambda net: setattr(net, "relu3", nn.GELU())), r"'relu3' is \(GELU\), in the plan's model \(ReLU\)"),
        (changed(lambda net: net.__delattr__("bn1")), r"no module 'bn1', the plan's model has \(BatchNorm2d weight"),
        (changed(lambda net: setattr(net, "more", linear())), r"has no module 'more', it has \(Linear weight\(8, 8\)"),
        (changed(lambda net: net.half()), r"'conv1' is \(Conv2d weight\(32, 3, 3, 3\) float16"),
        (changed(lambda net: net.conv1.register_parameter("bias", None)), r"'conv1' is .*in the plan's model .*bias"),
        (lambda: linear(), r"the model itself is \(Linear .*in the plan's model \(ExampleModel\)"),
    ],
)
def test_another_model_is_refused_with_the_first_module_that_differs(make, message):
    plan, model = PruningPlan.from_json((CORPUS / "schema-3.json").read_text()), make()
    before = Photograph(model)
    with pytest.raises(PlanError, match=message):
        plan.apply(model)
    assert Photograph(model).difference(before) == ""


def test_an_older_plan_refuses_another_model_with_what_it_knows():
    plan = PruningPlan.from_json((CORPUS / "schema-2.json").read_text())
    with pytest.raises(PlanError, match="it has 72 parameters, the plan's model has 89,034"):
        plan.apply(linear())


# ---- hostile plans ---------------------------------------------------------------------------------------------------

HOSTILE_NAMES = [
    "__class__", "forward.__globals__", "training", "conv1.__dict__", "_modules", "_modules.conv1", "conv1.weight",
    "__init__.__globals__.os.system", "", ".", "..", "conv1.", ".conv1", "conv1..weight", "conv1\0", "../conv1",
    "register_buffer",
]  # fmt: skip
EDITS = [
    {"kind": "delete"},
    {"kind": "pass", "position": 0, "keyword": None},
    {"kind": "drop", "merges": ["add"]},
    {"kind": "guard"},
    {"kind": "drop_parameter", "merges": ["add"]},
    {"kind": "slice", "side": "in", "dropped": [[0, 1]]},
    {"kind": "shorten", "removed": [0]},
    {"kind": "take_place", "of": "conv1"},
]


def with_edits(*edits, **changes):
    data = json.loads((CORPUS / "schema-3.json").read_text())
    return json.dumps(data | {"edits": edits} | changes)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit["kind"])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_means_a_module_or_nothing(edit, name):
    model = ExampleModel()
    before = Photograph(model)
    for edits in ([edit | {"fqn": name}], [edit | {"fqn": "conv1", "of": name}] if "of" in edit else []):
        if edits:
            with pytest.raises(PlanError, match=r"not a pruning plan|do not fit|promises"):
                PruningPlan.from_json(with_edits(*edits)).apply(model)
    assert Photograph(model).difference(before) == ""


class Trap(nn.Module):
    """Says when anybody asks for an attribute that is no module, parameter or buffer."""

    sprung: tuple[str, ...] = ()

    def __init__(self):
        super().__init__()
        self.body = linear()

    @property
    def lever(self):
        Trap.sprung += ("lever",)
        return self.body

    def forward(self, x):
        return x + self.body(x)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit["kind"])
def test_no_property_is_read_for_a_name_in_a_plan(edit):
    model = nn.Sequential(linear(), Trap(), linear())
    plan = UniversalLayerPruner(model, example_inputs=rows()).plan(groups=["1.body"])
    text = json.dumps(json.loads(plan.to_json()) | {"edits": [edit | {"fqn": "1.lever"}]})
    Trap.sprung = ()
    with pytest.raises(PlanError):
        PruningPlan.from_json(text).apply(model)
    assert Trap.sprung == ()


def nested(depth, leaf):
    for _ in range(depth):
        leaf = {"tuple": [leaf]}
    return leaf


@pytest.mark.parametrize(
    "edit",
    [
        {"kind": "slice", "fqn": "conv3", "side": "in", "dropped": []},
        {"kind": "slice", "fqn": "conv3", "side": "in", "dropped": [[5, 2]]},
        {"kind": "slice", "fqn": "conv3", "side": "in", "dropped": [[-3, 1]]},
        {"kind": "slice", "fqn": "conv3", "side": "in", "dropped": [[0, 4], [2, 6]]},
        {"kind": "slice", "fqn": "conv3", "side": "in", "dropped": [[4, 6], [0, 2]]},
        {"kind": "slice", "fqn": "conv3", "side": "in", "dropped": [[0, 10**30]]},
        {"kind": "pass", "fqn": "bn1", "position": -1, "keyword": None},
        {"kind": "pass", "fqn": "bn1", "position": 10**30, "keyword": None},
        {"kind": "pass", "fqn": "bn1", "position": None, "keyword": None},
        {"kind": "pass", "fqn": "bn1", "position": 0, "keyword": None, "structure": {"argument": 3}},
        {"kind": "pass", "fqn": "bn1", "position": 0, "keyword": None, "structure": {"argument": [0, 1]}},
        {"kind": "pass", "fqn": "bn1", "position": 0, "keyword": None, "structure": {"tuple": "abc"}},
        {"kind": "pass", "fqn": "bn1", "position": 0, "keyword": None, "structure": {"eval": "1"}},
        {"kind": "pass", "fqn": "bn1", "position": 0, "keyword": None, "structure": {"tuple": [], "list": []}},
        {"kind": "pass", "fqn": "bn1", "position": 0, "keyword": None, "structure": {"value": {"a": 1}}},
        {"kind": "pass", "fqn": "bn1", "position": 0, "keyword": None, "structure": "anything"},
        {"kind": "pass", "fqn": "bn1", "position": 0, "keyword": None, "structure": nested(30, "argument")},
        {"kind": "drop", "fqn": "bn1", "merges": ["exec"]},
        {"kind": "drop", "fqn": "bn1", "merges": ["add"], "structure": 7},
        {"kind": "shorten", "fqn": "", "removed": [-1]},
        {"kind": "shorten", "fqn": "", "removed": [10**30]},
        {"kind": "delete", "fqn": 3},
        {"kind": "__class__", "fqn": "bn1"},
        {"kind": "guard", "fqn": "bn1", "__class__": "os.system"},
    ],
    ids=lambda edit: json.dumps(edit)[:60],
)
def test_an_edit_of_absurd_numbers_or_forms_is_no_plan(edit):
    with pytest.raises(PlanError, match=r"not a pruning plan: edits\.0"):
        PruningPlan.from_json(with_edits(edit))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10_000,
        '{"edits":' * 10_000,
        '{"edits":' + "[" * 10_000 + "]" * 10_000 + "}",
        "9" * 10_000,
        '"' + "x" * 100_000,
    ],
    ids=["lists", "objects", "closed", "digits", "open string"],
)
def test_a_text_of_absurd_depth_or_length_is_no_plan(text):
    with pytest.raises(PlanError, match="not a pruning plan"):
        PruningPlan.from_json(text)


@pytest.mark.parametrize("number", [10**400, 2**63, -1, 1e300, float("nan"), float("inf"), True, "7"])
def test_absurd_numbers_of_parameters_are_no_plan(number):
    with pytest.raises(PlanError, match=r"not a pruning plan: num_params_before"):
        PruningPlan.from_json(with_edits(num_params_before=number))


@pytest.mark.parametrize(
    "edits",
    [
        [{"kind": "guard", "fqn": "bn1"}, {"kind": "drop", "fqn": "bn1", "merges": []}],
        [{"kind": "drop", "fqn": "bn1", "merges": []}, {"kind": "guard", "fqn": "bn1"}],
        [{"kind": "drop", "fqn": "bn1", "merges": []}] * 2,
        [{"kind": "slice", "fqn": "conv3", "side": "in", "dropped": [[0, 2]]}] * 70,
        [{"kind": "slice", "fqn": "conv3", "side": "channels", "dropped": [[0, 2]]}],
        [{"kind": "drop_parameter", "fqn": "fc.bias", "merges": ["add"]}] * 2,
        [
            {"kind": "drop_parameter", "fqn": "fc.weight", "merges": []},
            {"kind": "slice", "fqn": "fc", "side": "in", "dropped": [[0, 1]]},
        ],
    ],
)
def test_edits_that_contradict_each_other_are_refused(edits):
    model = ExampleModel()
    before = Photograph(model)
    with pytest.raises(PlanError, match=r"do not fit|promises"):
        PruningPlan.from_json(with_edits(*edits)).apply(model, inplace=True)
    assert Photograph(model).difference(before) == ""
