"""Imports packages of the extras, or tells how to install them."""

from __future__ import annotations

import importlib
from typing import Any

from layerprune.environment.packages import how_to_install
from layerprune.errors import DistillationError, ended_by


def extra(name: str) -> Any:
    """Import a package of the extra ``train``.

    Raises:
        DistillationError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        command = how_to_install("accelerate", "peft")
        raise DistillationError(ended_by(f"distillation needs {name}; run: {command}", error)) from error
