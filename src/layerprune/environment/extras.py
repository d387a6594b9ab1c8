"""Imports packages of the extras, or tells how to install them."""

from __future__ import annotations

import importlib
from typing import Any

from layerprune.environment.packages import how_to_install
from layerprune.errors import DistillationError, LayerPruneError, ended_by


def extra(
    name: str,
    what: str = "distillation needs",
    packages: tuple[str, ...] = ("accelerate", "peft"),
    refusal: type[LayerPruneError] = DistillationError,
) -> Any:
    """Import a module of an extra, by default of ``train``.

    Args:
        name: the module.
        what: what needs it, for the message.
        packages: what to install.
        refusal: the error to raise.

    Raises:
        LayerPruneError: the package is not installed; of the type ``refusal``.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise refusal(ended_by(f"{what} {name.partition('.')[0]}; run: {how_to_install(*packages)}", error)) from error
