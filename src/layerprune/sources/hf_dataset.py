"""Reads a dataset of the package datasets: saved on disk, made of files, or of the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from layerprune.errors import SourceError, ended_by
from layerprune.sources.data import DataSettings, arguments_of, batches_of
from layerprune.sources.images import transformed
from layerprune.sources.models import ModelSource
from layerprune.sources.packages import package
from layerprune.sources.text import tokenized

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text", ".arrow": "arrow"}
_USUAL_SPLITS = ("validation", "test", "train")


def read_dataset(name: str, model: nn.Module, source: ModelSource, settings: DataSettings, instead: str) -> list[Any]:
    """Batches of a dataset: its texts, its images, or its columns that are arguments of the forward.

    Args:
        name: ``NAME`` or ``NAME:SPLIT``; a folder, a file, or the name of a dataset on the hub.
        model: the model.
        source: where the model comes from.
        settings: sizes, and the column.
        instead: what to do where no column fits.

    Raises:
        SourceError: the package is missing, there is no such dataset or split, or no column fits the model.
    """
    rows = _split(*_parts(name))
    if not len(rows):
        raise SourceError(f"{name} holds no row")
    taken, _ = arguments_of(model)
    inputs = [column for column in rows.column_names if column in taken and column not in ("labels", "label")]
    if settings.column is None and inputs:
        arrays = rows.select_columns(inputs).with_format("numpy")
        order = sorted(settings.chosen(len(arrays)))
        return batches_of({each: arrays[order][each] for each in inputs}, model, settings, name)
    column, kind = _column(rows, source, settings.column, name, instead)
    order = settings.chosen(len(rows))  # only these rows are read
    values: Sequence[Any] = rows.select(order)[column]
    if kind == "image":
        return transformed(list(values), model, source, settings, instead)
    texts = [str(value) for value in values if value is not None and str(value).strip()]
    if not texts:
        raise SourceError(f"the column '{column}' of {name} holds no text")
    return tokenized(texts, model, source, settings, instead)


def _parts(name: str) -> tuple[str, str | None]:
    """Name and split; a colon may belong to a path."""
    if Path(name).exists():
        return name, None
    head, _, split = name.rpartition(":")
    return (head, split) if head else (name, None)


def _split(name: str, split: str | None) -> Any:
    datasets = package("datasets")
    datasets.disable_progress_bars()
    path = Path(name).expanduser()
    try:
        if path.is_dir() and any((path / each).is_file() for each in ("state.json", "dataset_dict.json")):
            held = datasets.load_from_disk(str(path))
        elif path.is_file():
            if path.suffix not in _BUILDERS:
                raise SourceError(f"{path} is no file of a dataset ({', '.join(_BUILDERS)})")
            held = datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path))
        elif path.is_dir() or not name.startswith((os.sep, ".", "~")):
            held = datasets.load_dataset(str(path) if path.is_dir() else name)
        else:
            raise SourceError(f"there is no file or folder {name}")
    except SourceError:
        raise
    except Exception as error:  # readers of files, the hub and pyarrow raise errors of many types
        raise SourceError(ended_by(f"the dataset {name} cannot be loaded", error)) from error
    if not hasattr(held, "keys"):  # a single split
        if split is not None:
            raise SourceError(f"{name} has no splits; leave out ':{split}'")
        return held
    names = list(held.keys())
    found = split if split is not None else next((each for each in _USUAL_SPLITS if each in names), names[0])
    if found not in names:
        raise SourceError(f"{name} has no split '{found}'; it has {', '.join(names)}")
    return held[found]


def _column(rows: Any, source: ModelSource, wanted: str | None, name: str, instead: str) -> tuple[str, str]:
    """The column that holds texts or images, and which of them."""
    kinds = {column: _kind(feature) for column, feature in rows.features.items()}
    if wanted is not None:
        if wanted not in kinds:
            raise SourceError(f"{name} has no column '{wanted}'; it has {', '.join(kinds)}")
        if not kinds[wanted]:
            raise SourceError(f"the column '{wanted}' of {name} holds neither texts nor images; {instead}")
        return wanted, kinds[wanted]
    usable = [
        column for column, kind in kinds.items() if kind == "image" or (kind == "text" and source.library == "hf")
    ]
    images = [column for column in usable if kinds[column] == "image"]
    if not usable:
        raise SourceError(
            f"no column of {name} ({', '.join(kinds)}) is an argument of the model's forward, holds images, or holds "
            f"texts for the tokenizer of an hf: model; {instead}"
        )
    best = images or [column for column in usable if column == "text"] or usable
    if len(best) > 1:
        raise SourceError(f"{name} has several columns that fit ({', '.join(best)}); name one: --column {best[0]}")
    return best[0], kinds[best[0]]


def _kind(feature: Any) -> str:
    if type(feature).__name__ == "Image":
        return "image"
    return "text" if getattr(feature, "dtype", "") in ("string", "large_string") else ""
