"""Finds the module and the batches that the MODEL and DATA arguments name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import socket
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import nn

from layerprune.environment import how_to_install, how_to_match_torchvision
from layerprune.errors import SourceError, ended_by

#: The forms of a MODEL argument.
FORMS = "torchvision:resnet50, timm:vit_small_patch16_224, hf:DIR_OR_ID, path/to/file.py:factory"

#: The form of a DATA argument.
DATA_FORM = "path/to/data.py:batches"

# Repository names of the Hugging Face hub; other text after "hf:" is a path.
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


def load_model(spec: str, *, pretrained: bool = False) -> nn.Module:
    """Build the model that a MODEL argument names.

    Args:
        spec: one of :data:`FORMS`.
        pretrained: load published weights of a torchvision or timm model (downloaded if needed) instead of random
            weights. ``hf:`` models always have their own weights, and the factory of a file decides for itself.

    Returns:
        The model, in the mode that its library sets.

    Raises:
        SourceError: the argument has none of the forms, a package is missing or broken, the name is unknown, the
            weights cannot be loaded, or the file's own code raised.
    """
    source, _, name = spec.partition(":")
    if source == "torchvision" and name:
        return _from_torchvision(name, pretrained)
    if source == "timm" and name:
        return _from_timm(name, pretrained)
    if source == "hf" and name:
        return _from_transformers(name)
    path, _, factory = spec.rpartition(":")
    if path.endswith(".py") and factory:
        return _from_file(Path(path), factory)
    raise SourceError(f"'{spec}' names no model; give one of: {FORMS}")


def load_data(spec: str) -> Iterable[Any]:
    """Run the file that a DATA argument names, and return its batches.

    The name is an iterable, or a function without arguments that returns an iterable, such as a generator function.

    Raises:
        SourceError: the argument has another form, the name is unknown, or the file's own code raised.
    """
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name:
        raise SourceError(f"'{spec}' names no data; give a Python file and an iterable of batches in it: {DATA_FORM}")
    made = _made_by(Path(path), name, lambda held: hasattr(held, "__iter__"))
    if not hasattr(made, "__iter__"):
        raise SourceError(f"'{name}' in {path} gives a {type(made).__name__}, not an iterable of batches")
    return made


def _from_torchvision(name: str, pretrained: bool) -> nn.Module:
    models = _package("torchvision").models
    if name not in models.list_models():
        raise SourceError(_unknown(name, "torchvision", models.list_models()))
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if not pretrained and "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # detectors download weights of their backbone by default
    with _weights_within_reach(name):
        return models.get_model(name, **options)


def _from_timm(name: str, pretrained: bool) -> nn.Module:
    timm = _package("timm")
    if not timm.is_model(name):
        raise SourceError(_unknown(name, "timm", timm.list_models()))
    with _weights_within_reach(name):
        return timm.create_model(name, pretrained=pretrained)


def _from_transformers(name: str) -> nn.Module:
    """Load a checkpoint as the class that saved it, or as the bare encoder where it names no class."""
    transformers = _package("transformers")
    name = _folder_or_repository(name)
    with _weights_within_reach(name):
        config = transformers.AutoConfig.from_pretrained(name)
        architecture = next(iter(config.architectures or ()), "AutoModel")
        return getattr(transformers, architecture, transformers.AutoModel).from_pretrained(name)


def _folder_or_repository(name: str) -> str:
    """Decide between a local folder and a hub repository, without waiting for the network."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    try:
        siblings = [str(path) for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        siblings = []
    near = difflib.get_close_matches(str(folder), siblings, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    if not _REPOSITORY.fullmatch(name):
        raise SourceError(f"there is no folder {name}{hint}")
    import huggingface_hub

    is_cached = isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)
    if not is_cached and (why := _out_of_reach(huggingface_hub.constants.ENDPOINT)):
        raise SourceError(f"there is no folder {name}, and {why}{hint}")
    return name


def _out_of_reach(endpoint: str) -> str:
    host = urlsplit(endpoint).hostname or ""
    if getproxies():  # a proxy resolves names itself
        return ""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return f"{host} cannot be reached to look for it there ({error})"
    return ""


def _from_file(path: Path, factory: str) -> nn.Module:
    made = _made_by(path, factory, lambda held: isinstance(held, nn.Module))
    if not isinstance(made, nn.Module):
        raise SourceError(f"'{factory}' in {path} gives a {type(made).__name__}, not a torch.nn.Module")
    return made


def _made_by(path: Path, factory: str, is_made: Callable[[Any], bool]) -> Any:
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    with _importable_siblings(path):
        module = _run(path)
        made = getattr(module, factory, None)
        if made is None:
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise SourceError(f"{path} defines no '{factory}'; it has: {', '.join(sorted(names)) or 'no callable'}")
        if not is_made(made) and callable(made):
            with _blame(path, f"{factory}()"):
                made = made()
    return made


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


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise SourceError(f"{missing} is not installed; run: {how_to_install(missing)}") from error
    except Exception as error:  # a broken binary raises any type: OSError, RuntimeError, AttributeError
        if "torchvision::" in str(error):
            raise SourceError(
                ended_by(f"torchvision was not built for this torch; run: {how_to_match_torchvision()}", error)
            ) from error
        raise SourceError(f"{name} is installed but does not import: {error}") from error


@contextmanager
def _weights_within_reach(name: str) -> Generator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"{name} cannot be loaded: {error}") from error


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


def _unknown(name: str, library: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"{library} has no model '{name}'" + (f"; did you mean {', '.join(near)}?" if near else "")
