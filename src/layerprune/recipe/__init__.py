"""Runs a recipe: a file that names a model, its data and the stages, each of which is kept once it has finished."""

# pyright: reportUnusedImport=false
from layerprune.recipe.read import read_recipe, recipe_of
from layerprune.recipe.records import PruningRecipe
from layerprune.recipe.run import RecipeRun, run_recipe
from layerprune.recipe.stages import StageState
