"""Tells whether what a MODEL or DATA argument names has changed, without reading it whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

from layerprune.errors import SourceError
from layerprune.sources.models import source_of

_MOST_BYTES = 2**28  # larger files are told apart by size and time
_FORMS = ("text", "images", "npz", "hf-dataset")


def identity_of(spec: str) -> str:
    """A digest of the files that an argument names: of their content, or of the sizes and times of large ones.

    Models and datasets that are no files have their name as identity. A Python file counts alone, without what it
    imports.
    """
    path = path_of(spec)
    if path is None or not path.exists():
        return spec
    found = hashlib.sha256(spec.encode())
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    num_bytes = sum(each.stat().st_size for each in files)
    for each in files:
        state = each.stat()
        found.update(f"{each.name};{state.st_size};".encode())
        found.update(each.read_bytes() if num_bytes <= _MOST_BYTES else str(state.st_mtime_ns).encode())
    return found.hexdigest()


def path_of(spec: str) -> Path | None:
    """The file or folder that an argument names; None where it names none."""
    form, _, rest = spec.partition(":")
    if form in _FORMS or form == "hf":
        whole = Path(rest).expanduser()
        if whole.exists() or form != "hf-dataset":
            return whole
        return Path(rest.rpartition(":")[0]).expanduser() if ":" in rest else whole  # a split behind a colon
    path = spec.rpartition(":")[0]
    return Path(path) if path.endswith(".py") else None


def check_source(spec: str, *, is_data: bool) -> None:
    """Refuse an argument whose form is wrong, or whose file is missing, before anything is built.

    Raises:
        SourceError: so it is.
    """
    if not is_data:
        source_of(spec)
    elif spec.partition(":")[0] not in _FORMS and not spec.rpartition(":")[0].endswith(".py"):
        raise SourceError(f"'{spec}' names no data; give text:, images:, npz:, hf-dataset: or file.py:name")
    path, form = path_of(spec), spec.partition(":")[0]
    if path is not None and not path.exists() and form not in ("hf", "hf-dataset"):
        raise SourceError(f"there is no {'folder' if form == 'images' else 'file'} {path}")
