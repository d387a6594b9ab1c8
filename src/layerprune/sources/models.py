"""Builds the model that a text such as ``timm:resnet50`` names."""

from __future__ import annotations

import difflib
import inspect
import re
import socket
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from layerprune.errors import SourceError
from layerprune.sources.packages import package
from layerprune.sources.python_file import made_by, near_names

#: The forms of a MODEL argument.
MODEL_FORMS = "torchvision:resnet50, timm:vit_small_patch16_224, hf:DIR_OR_ID, path/to/file.py:factory"

# Repository names of the Hugging Face hub; other text after "hf:" is a path.
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModelSource:
    """A MODEL argument, taken apart.

    Attributes:
        library: the library that has the model, or ``file`` for a Python file.
        name: the model's name, the folder or repository of a transformers model, or the path of the file.
        factory: the name inside the file; empty for a library.
    """

    library: Literal["torchvision", "timm", "hf", "file"]
    name: str
    factory: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.factory}" if self.library == "file" else f"{self.library}:{self.name}"

    @property
    def origin(self) -> str | None:
        """Folder or hub name of a transformers model, whose tokenizer belongs to a saved model; None for others."""
        return self.name if self.library == "hf" else None


def source_of(spec: str) -> ModelSource:
    """Take a MODEL argument apart.

    Raises:
        SourceError: it has none of the forms of :data:`MODEL_FORMS`.
    """
    source, _, name = spec.partition(":")
    for library in ("torchvision", "timm", "hf"):
        if source == library and name:
            return ModelSource(library, name)
    path, _, factory = spec.rpartition(":")
    if path.endswith(".py") and factory:
        return ModelSource("file", path, factory)
    raise SourceError(f"'{spec}' names no model{_hint(spec)}; give one of: {MODEL_FORMS}")


def _hint(spec: str) -> str:
    """What was probably meant by a wrong MODEL argument."""
    if spec.endswith(".py") and Path(spec).is_file():
        return f" (the factory in the file is missing: {spec}:NAME)"
    if (Path(spec) / "config.json").is_file():
        return f" (a folder of a transformers model is hf:{spec})"
    if (Path(spec) / "manifest.json").is_file():
        return f" ({spec} is what prune wrote of a model; name the model that it was pruned from)"
    return ""


def load_model(spec: str, *, pretrained: bool = False) -> nn.Module:
    """Build the model that a MODEL argument names.

    Args:
        spec: one of :data:`MODEL_FORMS`.
        pretrained: load published weights of a torchvision or timm model (downloaded if needed) instead of random
            weights. ``hf:`` models always have their own weights, and the factory of a file decides for itself.

    Returns:
        The model, in the mode that its library sets.

    Raises:
        SourceError: the argument has none of the forms, a package is missing or broken, the name is unknown, the
            weights cannot be loaded, or the file's own code raised.
    """
    source = source_of(spec)
    if source.library == "torchvision":
        return _from_torchvision(source.name, pretrained)
    if source.library == "timm":
        return _from_timm(source.name, pretrained)
    if source.library == "hf":
        return _from_transformers(source.name)
    return _from_file(Path(source.name), source.factory)


def load_skeleton(spec: str) -> nn.Module:
    """Build a library's model on the meta device: its structure without values, in little time and memory.

    The factory of a Python file runs as it always does, since it may read files of weights.

    Raises:
        SourceError: as for :func:`load_model`.
        Exception: the model's own code needs values; of any type. Use :func:`load_model` then.
    """
    source = source_of(spec)
    if source.library == "file":
        return load_model(spec)
    with torch.device("meta"):
        if source.library == "hf":
            model_class, config, _ = _transformers_class(source.name)
            return model_class(config)
        return load_model(spec)


def _from_torchvision(name: str, pretrained: bool) -> nn.Module:
    models = package("torchvision").models
    if name not in models.list_models():
        raise SourceError(_unknown(name, "torchvision", models.list_models()))
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if not pretrained and "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # detectors download weights of their backbone by default
    with _weights_within_reach(name):
        return models.get_model(name, **options)


def _from_timm(name: str, pretrained: bool) -> nn.Module:
    timm = package("timm")
    if not timm.is_model(name):
        raise SourceError(_unknown(name, "timm", timm.list_models()))
    with _weights_within_reach(name):
        return timm.create_model(name, pretrained=pretrained)


def _from_transformers(name: str) -> nn.Module:
    """Load a checkpoint as the class that saved it, or as the bare encoder where it names no class."""
    model_class, _, folder = _transformers_class(name)
    with _weights_within_reach(name), _quiet_without_terminal(package("transformers").utils.logging):
        return model_class.from_pretrained(folder)


@contextmanager
def _quiet_without_terminal(switch: Any) -> Generator[None]:
    """Switch the progress bars of transformers off where standard error is a file or a pipe."""
    if sys.stderr.isatty() or not switch.is_progress_bar_enabled():
        yield
        return
    switch.disable_progress_bar()
    try:
        yield
    finally:
        switch.enable_progress_bar()


def _transformers_class(name: str) -> tuple[Any, Any, str]:
    """The class of a checkpoint, its config, and its folder or repository."""
    transformers = package("transformers")
    folder = folder_or_repository(name)
    with _weights_within_reach(name):
        config = transformers.AutoConfig.from_pretrained(folder)
    architecture = next(iter(config.architectures or ()), "AutoModel")
    found = getattr(transformers, architecture, transformers.AutoModel)
    if found is transformers.AutoModel:  # the class itself, so that it can be built without weights, too
        found = transformers.AutoModel._model_mapping.get(type(config), found)
    return found, config, folder


def folder_or_repository(name: str) -> str:
    """Decide between a local folder and a hub repository, without waiting for the network."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    try:
        siblings = [str(path) for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        siblings = []
    hint = near_names(str(folder), siblings)
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
    made = made_by(path, factory, lambda held: isinstance(held, nn.Module))
    if not isinstance(made, nn.Module):
        raise SourceError(f"'{factory}' in {path} gives a {type(made).__name__}, not a torch.nn.Module")
    return made


@contextmanager
def _weights_within_reach(name: str) -> Generator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"{name} cannot be loaded: {error}") from error


def _unknown(name: str, library: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"{library} has no model '{name}'" + (f"; did you mean {', '.join(near)}?" if near else "")
