"""Writes text files whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from layerprune.errors import LayerPruneError, ReportError


def write_text(
    path: str | os.PathLike[str], text: str, what: str, refusal: type[LayerPruneError] = ReportError
) -> Path:
    """Write a text file as UTF-8, with its folders; a file that is there stays as it was where that fails.

    Args:
        path: the file.
        text: its contents.
        what: what the file holds, for the message.
        refusal: the error to raise.

    Raises:
        LayerPruneError: the file cannot be written; of the type ``refusal``.
    """
    target = Path(path)
    written = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(text, encoding="utf-8")
        written.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)
        raise refusal(f"{what} cannot be written to {target}: {error}; name a file that can be written") from error
    return target
