"""``layerprune verify``: checks that a saved folder is unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerprune.cli.console import print_json, working
from layerprune.cli.options import JsonOption


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `layerprune prune` or save_pruned wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Check that a saved model is complete, and bit for bit as it was written.

    With --json: an object of `folder`, `model`, `num_params`, `bytes`, `files` and `versions`.
    """
    with working(as_json=as_json):
        from layerprune.checkpoint import verify

        manifest = verify(folder)
    size = sum(record.size for record in manifest.files.values())
    if as_json:
        record = {"model": manifest.model, "num_params": manifest.num_params, "bytes": size}
        print_json({"folder": str(folder), **record, "files": list(manifest.files), "versions": manifest.versions})
        return
    typer.echo(f"{folder} is as it was written: {manifest.model}, {manifest.num_params:,} parameters, {size:,} bytes")
