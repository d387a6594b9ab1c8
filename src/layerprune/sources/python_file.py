"""Takes an object out of a Python file, or what a function there returns."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from layerprune.errors import SourceError


def made_by(path: Path, name: str, is_made: Callable[[Any], bool]) -> Any:
    """Run a file, and take the object of a name; a function is called unless ``is_made`` accepts it as it is.

    Raises:
        SourceError: there is no such file or name, or the file's own code raised.
    """
    if not path.is_file():
        raise SourceError(f"there is no file {path}{near_names(path.name, _siblings(path))}")
    with _importable_siblings(path):
        module = _run(path)
        made = getattr(module, name, None)
        if made is None:
            names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise SourceError(f"{path} defines no '{name}'; it has: {', '.join(sorted(names)) or 'no callable'}")
        if not is_made(made) and callable(made):
            with _blame(path, f"{name}()"):
                made = made()
    return made


def near_names(name: str, known: Iterable[str]) -> str:
    """``; did you mean …?``, or nothing where no known name is similar."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {', '.join(near)}?" if near else ""


def _siblings(path: Path) -> list[str]:
    try:
        return [each.name for each in path.parent.iterdir() if each.suffix == path.suffix]
    except OSError:
        return []


def _run(path: Path) -> ModuleType:
    """Execute a file as a module whose name hides no other module."""
    name = f"layerprune_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{path} cannot be run as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up a class's module here
    with _blame(path, "the file"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _importable_siblings(path: Path) -> Generator[None]:
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def _blame(path: Path, what: str) -> Generator[None]:
    try:
        yield
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
        raise SourceError(f"{what} of {path} raised {type(error).__name__}: {error} ({where})") from error
