"""Reads arrays of an npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from layerprune.errors import SourceError


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file by name; code in the file is never run.

    Raises:
        SourceError: the file is missing, is no npz file, or holds objects in place of numbers.
    """
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            raise SourceError(f"{path} holds a single array without a name; write it by numpy.savez(file, NAME=array)")
        with held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} cannot be read as an npz file: {error}") from error
    for name, array in arrays.items():
        if array.ndim == 0:
            raise SourceError(f"'{name}' in {path} is a single number; the first axis counts the samples")
        if array.dtype.kind not in "biufc":
            raise SourceError(f"'{name}' in {path} holds {array.dtype}, and no numbers")
    return arrays
