"""Imports optional packages, or tells how to install them."""

from __future__ import annotations

import importlib
from typing import Any

from layerprune.environment import how_to_install, how_to_match_torchvision
from layerprune.errors import SourceError, ended_by

_PIP_NAMES = {"PIL": "pillow"}


def package(name: str) -> Any:
    """Import a package by its name.

    Raises:
        SourceError: it is missing, or broken; the message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        install = how_to_install(_PIP_NAMES.get(missing, missing))
        raise SourceError(f"{missing} is not installed; run: {install}") from error
    except Exception as error:  # a broken binary raises any type: OSError, RuntimeError, AttributeError
        if "torchvision::" in str(error):
            raise SourceError(
                ended_by(f"torchvision was not built for this torch; run: {how_to_match_torchvision()}", error)
            ) from error
        raise SourceError(f"{name} is installed but does not import: {error}") from error
