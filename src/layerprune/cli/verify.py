"""``layerprune verify``: checks that a saved folder is unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerprune.cli.console import working


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `layerprune prune` or save_pruned wrote.")],
) -> None:
    """Check that a saved model is complete, and bit for bit as it was written."""
    with working():
        from layerprune.checkpoint import verify

        manifest = verify(folder)
    size = sum(record.size for record in manifest.files.values())
    typer.echo(f"{folder} is as it was written: {manifest.model}, {manifest.num_params:,} parameters, {size:,} bytes")
