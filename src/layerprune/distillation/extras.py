"""Extras: the packages that training needs and the rest of the library does not."""

from __future__ import annotations

import importlib
from typing import Any

from layerprune.errors import DistillationError


def extra(name: str) -> Any:
    """Import a package of the extra ``train``.

    Raises:
        DistillationError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DistillationError(f"distillation needs {name}: pip install layerprune[train] ({error})") from error
