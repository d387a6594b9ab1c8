"""Reads a recipe from a file of YAML, TOML or JSON."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from layerprune.errors import RecipeError
from layerprune.recipe.records import PruningRecipe
from layerprune.sources import package

_ENDINGS = (".yaml", ".yml", ".toml", ".json")


def read_recipe(path: str | Path) -> PruningRecipe:
    """Read and check a recipe.

    Raises:
        RecipeError: the file is missing, cannot be read, or a field is unknown or invalid; the message names it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as text in UTF-8: {error}") from error
    return recipe_of(_parsed(path, text), str(path))


def recipe_of(content: Any, where: str = "the recipe") -> PruningRecipe:
    """Check the content of a recipe.

    Raises:
        RecipeError: a field is unknown or invalid.
    """
    if not isinstance(content, Mapping):
        raise RecipeError(f"{where} holds no fields; a recipe needs model, plan and out")
    try:
        return PruningRecipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_said(error)}") from error


def _parsed(path: Path, text: str) -> Any:
    if path.suffix not in _ENDINGS:
        raise RecipeError(f"{path} is no recipe: its name has to end in {', '.join(_ENDINGS)}")
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_unique)
        if path.suffix == ".toml":
            return _toml().loads(text)
        return _yaml(text)
    except ValueError as error:  # of JSON and TOML
        raise RecipeError(f"{path} cannot be read: {error}") from error


def _toml() -> Any:
    try:
        return package("tomllib")  # from Python 3.11 on
    except Exception:
        return package("tomli")


def _yaml(text: str) -> Any:
    """Read YAML without tags that make objects; a key given twice is an error, which YAML's reader takes silently."""
    yaml = package("yaml")

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            _unique([(self.construct_object(key, deep=True), None) for key, _ in node.value])
            return super().construct_mapping(node, deep)

    loader = Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def _unique(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"'{key}' is given twice")
        found[key] = value
    return found


def _said(error: ValidationError) -> str:
    """The first invalid field, with the names that it may have been meant for."""
    found = error.errors(include_url=False, include_context=False)
    # A mistyped name also leaves the field missing that it was meant for.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    place = list(first["loc"])
    name = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        known = _fields_at(PruningRecipe, place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known)}"
        return f"there is no field '{name}'; {hint}"
    if first["type"] == "missing":
        return f"the field '{name}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f"{name}={given!r:.60}: " if name and not isinstance(given, (dict, list)) else f"{name}: " if name else ""
    return f"{shown}{message[0].lower()}{message[1:]}"


def _fields_at(record: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """Fields of the record at a place inside of a recipe."""
    for part in place:
        if isinstance(part, int):
            continue
        record = _record_in(record.model_fields[part].annotation) or record
    return list(record.model_fields)


def _record_in(annotation: Any) -> type[BaseModel] | None:
    """The record in an annotation such as ``Part | None`` or ``tuple[Part, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, Union, types.UnionType):
        return next((found for each in get_args(annotation) if (found := _record_in(each)) is not None), None)
    return None
