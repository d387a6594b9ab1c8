"""Builds, without weights, the model that transformers makes of a config, for comparison."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn

from layerprune.adapters.transformers.example_inputs import builds_from_config
from layerprune.torch_internals import children_of, tensors_of

#: A config as in ``config.json``.
ConfigDict = dict[str, Any]

_PLAIN = (type(None), bool, int, float, str)
_OWN = frozenset(vars(nn.Module()))
_NUM_TWINS = 64


@dataclass(frozen=True)
class Form:
    """A module without its values: class, shapes of its own tensors, plain attributes."""

    kind: str
    tensors: Mapping[str, tuple[int, ...]]
    plain: Mapping[str, Any]
    is_leaf: bool


@dataclass(frozen=True)
class ReferenceModel:
    """A model on the meta device, built from ``config.json``; ``reason`` says why there is none."""

    model: nn.Module | None
    forms: Mapping[str, Form]
    reason: str = ""


def owner_of(model: nn.Module, fqn: str) -> str | None:
    """The name of the outermost transformers model that holds a module, or is it; None where there is none."""
    module: nn.Module | None = model
    parts = fqn.split(".") if fqn else []
    for depth in range(len(parts) + 1):
        if module is None:
            return None
        if builds_from_config(module):
            return ".".join(parts[:depth])
        module = children_of(module).get(parts[depth]) if depth < len(parts) else None
    return None


@dataclass(frozen=True)
class Origin:
    """Model class, config class and ``config.json`` of a reference model, and kernel choices, which are never saved."""

    model_class: type
    config_class: type
    text: str
    implementations: tuple[tuple[str, str, Any], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Origin:
        config = cast(Any, model).config
        with _quiet():
            text = _json(config.to_dict())
        return cls(type(model), type(config), text, _implementations(config))

    @property
    def config(self) -> ConfigDict:
        """A new copy of the config."""
        return json.loads(self.text)

    def with_config(self, config: ConfigDict) -> Origin:
        return replace(self, text=_json(config))

    def reread(self) -> ConfigDict | None:
        """The config after a pass through its class; None where the class refuses it."""
        try:
            with _quiet():
                return json.loads(_json(cast(Any, self.config_class).from_dict(self.config).to_dict()))
        except Exception:  # checks of the library may raise any error
            return None


@lru_cache(maxsize=_NUM_TWINS)
def reference_model_of(origin: Origin) -> ReferenceModel:
    """Build vanilla transformers' model of a config that was saved and read again: classes derive fields; cached."""
    config_class = cast(Any, origin.config_class)
    try:
        with _quiet(), _weightless():
            saved = config_class.from_dict(origin.config).to_diff_dict()
            config = config_class.from_dict(json.loads(_json(saved)))
            for path, name, value in origin.implementations:
                vars(_inner(config, path))[name] = value
            model = origin.model_class(config)
    except Exception as error:  # checks of the library may raise any error
        lines = str(error).strip().splitlines()
        return ReferenceModel(None, {}, f"{type(error).__name__}: {lines[0][:200] if lines else ''}")
    return ReferenceModel(model, forms(model))


def _json(config: Mapping[str, Any]) -> str:
    """A config's text: lists for tuples and names for types, as in ``config.json``."""
    return json.dumps(config, sort_keys=True, default=str)


def forms(model: nn.Module) -> dict[str, Form]:
    """Describe every module of a model, under all its names."""
    return {name: _form(module) for name, module in model.named_modules(remove_duplicate=False)}


def _form(module: nn.Module) -> Form:
    tensors = {key: tuple(tensor.shape) for key, tensor in tensors_of(module)}
    plain = {key: value for key, value in vars(module).items() if key not in _OWN and is_plain(value)}
    kind = f"{type(module).__module__}.{type(module).__qualname__}"  # parametrised classes are made anew each time
    return Form(kind, tensors, plain, not children_of(module))


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, strings and containers of them only."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, Mapping):
        return all(is_plain(item) for pair in cast("Mapping[Any, Any]", value).items() for item in pair)
    return isinstance(value, (list, tuple, set, frozenset)) and all(map(is_plain, cast("Sequence[Any]", value)))


def inner_configs(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config and the configs inside it, by dotted path."""
    yield path, config
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from inner_configs(value, f"{path}.{name}" if path else name)


def _inner(config: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        config = getattr(config, name)
    return config


def _implementations(config: Any) -> tuple[tuple[str, str, Any], ...]:
    return tuple(
        (path, name, value)
        for path, inner in inner_configs(config)
        for name, value in vars(inner).items()
        if name.endswith("_implementation_internal") and isinstance(value, _PLAIN)
    )


@contextmanager
def _weightless() -> Generator[None]:
    """Build modules on the meta device without drawing weights or using the RNG."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.device("meta"))
        for home in ("initialization", "modeling_utils"):  # the function has moved
            skip = getattr(importlib.import_module(f"transformers.{home}"), "no_init_weights", None)
            if skip is not None:
                stack.enter_context(skip())
                break
        yield


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the library's logs and warnings about trial configs."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
