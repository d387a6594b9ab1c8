"""The recipe on the page of the command line is a recipe, with every part that there is."""

from __future__ import annotations

import re
from pathlib import Path

from layerprune.recipe import PruningRecipe, read_recipe

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


def test_the_pages_recipe_is_read(tmp_path):
    found = re.search(r'^```yaml title="recipe.yaml"\n(.*?)^```', PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    path = tmp_path / "recipe.yaml"
    path.write_text(found[1], encoding="utf-8")
    recipe = read_recipe(path)
    assert recipe.model_fields_set == set(PruningRecipe.model_fields)
    assert recipe.distill is not None
    assert recipe.distill.learning_rate == 3e-4
