"""A recipe names all that is wrong with it, and what was probably meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerprune.distillation import Recipe
from layerprune.errors import RecipeError
from layerprune.recipe import PruningRecipe, read_recipe, recipe_of
from layerprune.select import Budgets

WHOLE = {
    "model": {"source": "timm:resnet18", "pretrained": True},
    "data": {"calibration": "images:photos", "compare": "images:others", "batch_size": 8},
    "pruner": {"protect": "layer1*", "granularity": "branch"},
    "plan": {"max_param_reduction": 0.3, "max_impact": 0.1},
    "prune": {"repair": "mean"},
    "distill": {"num_epochs": 1, "lora_rank": 4},
    "compare": {"latency": True},
    "export": [{"to": "onnx", "file": "model.onnx"}],
    "report": {},
    "out": "result",
}
LEAST = {"model": "timm:resnet18", "plan": {"max_param_reduction": 0.3}, "out": "result"}


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_is_read_alike_from_yaml_toml_and_json(tmp_path):
    expected = recipe_of(LEAST)
    yaml = "model: timm:resnet18\nplan: {max_param_reduction: 0.3}\nout: result\n"
    toml = 'model = "timm:resnet18"\nout = "result"\n[plan]\nmax_param_reduction = 0.3\n'
    for name, text in (("a.yaml", yaml), ("a.toml", toml), ("a.json", json.dumps(LEAST))):
        assert read_recipe(write(tmp_path, text, name)) == expected
    assert expected.model.source == "timm:resnet18"
    assert expected.distill is expected.compares is None


def test_a_resolved_recipe_is_a_recipe():
    recipe = recipe_of(WHOLE)
    assert recipe_of(json.loads(recipe.model_dump_json())) == recipe
    assert recipe.pruner.protect == ("layer1*",)


def test_every_budget_and_every_setting_of_the_training_is_a_field():
    fields = PruningRecipe.model_fields
    plan, distill = (fields[name].annotation for name in ("plan", "distill"))
    assert set(Budgets.__dataclass_fields__) <= set(plan.model_fields)
    assert set(Recipe.model_fields) <= set(next(t for t in distill.__args__ if t is not type(None)).model_fields)


def test_words_that_yaml_takes_for_values_mean_what_they_say(tmp_path):
    text = (
        "model: timm:resnet18\ndata: {calibration: images:a}\nplan: {max_param_reduction: 3e-1}\n"
        "prune: {repair: null}\ndistill: {mixed_precision: no, learning_rate: 1e-4}\nout: result\n"
    )
    recipe = read_recipe(write(tmp_path, text))
    assert recipe.prune.repair == "none"
    assert recipe.distill.mixed_precision == "no"
    assert (recipe.distill.learning_rate, recipe.plan.max_param_reduction) == (1e-4, 0.3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"plans": {}}, "there is no field 'plans'; did you mean plan?"),
        ({"plan": {"max_param_reducton": 0.3}}, "'plan.max_param_reducton'; did you mean max_param_reduction"),
        ({"distill": {"epochs": 3}}, "there is no field 'distill.epochs'; did you mean num_epochs"),
        ({"export": [{"to": "onnx", "path": "a"}]}, "there is no field 'export.0.path'; there are to, file"),
        ({"plan": {"max_param_reduction": 30}}, "plan.max_param_reduction=30: input should be less than 1"),
        ({"plan": {}}, "plan: say how much goes in one way"),
        ({"plan": {"max_param_reduction": 0.3, "unused": True}}, "plan: say how much goes in one way"),
        ({"out": None}, "out=None: input should be a valid string"),
        ({"model": {"name": "timm:resnet18"}}, "there is no field 'model.name'; there are source, pretrained"),
        ({"model": {"pretrained": True}}, "the field 'model.source' is missing"),
        (
            {"pruner": {"granularity": "layer"}},
            "pruner.granularity='layer': input should be 'group', 'branch' or 'block'",
        ),
        ({"distill": {}, "data": {}}, "distill needs data: give data.distill, or data.calibration"),
        ({"compare": {}, "data": {}, "distill": None}, "compare needs data"),
        ({"export": {"to": "onnx", "file": "../a.onnx"}}, "'../a.onnx' is no name for a file in the output folder"),
        ({"export": {"to": "onnx", "file": "plan.json"}}, "'plan.json' is no name"),
        ({"export": [{"to": "onnx", "file": "a"}, {"to": "torch-export", "file": "a"}]}, "two stages write a"),
    ],
)
def test_a_wrong_field_is_named(change, says):
    with pytest.raises(RecipeError) as found:
        recipe_of({**WHOLE, **change})
    assert says in str(found.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", "model: [", "cannot be read"),
        ("a.yaml", "out: a\nout: b\n", "'out' is given twice"),
        ("a.yaml", "model: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("a.yaml", "", "holds no fields"),
        ("a.json", '{"out": "a", "out": "b"}', "'out' is given twice"),
        ("a.json", "{", "cannot be read"),
        ("a.toml", "out = ", "cannot be read"),
        ("a.txt", "", "its name has to end in .yaml"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, name, text, says):
    with pytest.raises(RecipeError, match=says):
        read_recipe(write(tmp_path, text, name))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no file .*recipe\.yaml"):
        read_recipe(tmp_path / "recipe.yaml")
