"""Makes the batches that a text such as ``text:FILE`` or ``images:DIR`` names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerprune.errors import SourceError
from layerprune.sources.models import ModelSource
from layerprune.sources.python_file import made_by

#: The forms of a DATA argument.
DATA_FORMS = "text:FILE, images:DIR, npz:FILE, hf-dataset:NAME[:SPLIT], path/to/file.py:name"

_ONE_CALL = "write the batches yourself, in a Python file: file.py:name"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How samples become batches.

    Attributes:
        batch_size: samples in a batch.
        max_samples: samples at most, spread evenly over the data.
        max_length: tokens of a text at most.
        column: the column of a dataset that holds the texts or images; found by its type if None.
        seed: of the order of the samples.
    """

    batch_size: int = 16
    max_samples: int = 256
    max_length: int = 128
    column: str | None = None
    seed: int = 0

    def chosen(self, num: int) -> list[int]:
        """Numbers of the samples to take of ``num``: evenly spread, as files may be sorted by class, and shuffled.

        The last quarter of the batches judges a repair, so that it has to be like the others.
        """
        taken = torch.linspace(0, num - 1, min(num, self.max_samples)).round().long()
        order = torch.randperm(len(taken), generator=torch.Generator().manual_seed(self.seed))
        return taken[order].tolist()

    def batched(self, samples: Sequence[Any]) -> list[Sequence[Any]]:
        """Cut samples into batches."""
        return [samples[start : start + self.batch_size] for start in range(0, len(samples), self.batch_size)]


def load_data(spec: str, model: nn.Module, source: ModelSource, settings: DataSettings | None = None) -> Iterable[Any]:
    """Make the batches that a DATA argument names, in the form that the model's forward takes.

    Args:
        spec: one of :data:`DATA_FORMS`. Texts are tokenized by the transformers model's own tokenizer. Images get the
            size and the normalization of the model's own config. The arrays of an npz file have the names of arguments.
            A name in a Python file is an iterable of batches, or a function without arguments that returns one.
        model: the model.
        source: where the model comes from, and with it its tokenizer or its image transforms.
        settings: sizes, and the number of samples; not for a Python file, which decides itself.

    Returns:
        The batches.

    Raises:
        SourceError: the argument has another form, a package or a file is missing, a file cannot be read, or it holds
            nothing that the model's forward takes.
    """
    settings = settings or DataSettings()
    form, _, rest = spec.partition(":")
    if form in _LOADERS and rest:
        return _LOADERS[form](rest, model, source, settings)
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name:
        raise SourceError(f"'{spec}' names no data{_hint(spec)}; give one of: {DATA_FORMS}")
    made = made_by(Path(path), name, lambda held: hasattr(held, "__iter__"))
    if not hasattr(made, "__iter__"):
        raise SourceError(f"'{name}' in {path} gives a {type(made).__name__}, not an iterable of batches")
    return made


def _hint(spec: str) -> str:
    """What was probably meant by a wrong DATA argument."""
    path = Path(spec)
    if path.suffix == ".py" and path.is_file():
        return f" (the name in the file is missing: {spec}:NAME)"
    forms = {".npz": "npz", ".npy": "npz", ".txt": "text", ".json": "hf-dataset", ".jsonl": "hf-dataset"}
    if path.suffix in forms and path.is_file():
        return f" (did you mean {forms[path.suffix]}:{spec}?)"
    return f" (did you mean images:{spec}?)" if path.is_dir() else ""


def _text(name: str, model: nn.Module, source: ModelSource, settings: DataSettings) -> Iterable[Any]:
    from layerprune.sources.text import read_texts, tokenized

    return tokenized(read_texts(Path(name)), model, source, settings, _ONE_CALL)


def _images(name: str, model: nn.Module, source: ModelSource, settings: DataSettings) -> Iterable[Any]:
    from layerprune.sources.images import images_in, transformed

    return transformed(images_in(Path(name)), model, source, settings, _ONE_CALL)


def _npz(name: str, model: nn.Module, source: ModelSource, settings: DataSettings) -> Iterable[Any]:
    from layerprune.sources.arrays import read_arrays

    return batches_of(read_arrays(Path(name)), model, settings, name)


def _dataset(name: str, model: nn.Module, source: ModelSource, settings: DataSettings) -> Iterable[Any]:
    from layerprune.sources.hf_dataset import read_dataset

    return read_dataset(name, model, source, settings, _ONE_CALL)


_LOADERS: Mapping[str, Callable[[str, nn.Module, ModelSource, DataSettings], Iterable[Any]]] = {
    "text": _text,
    "images": _images,
    "npz": _npz,
    "hf-dataset": _dataset,
}


def batches_of(columns: Mapping[str, Any], model: nn.Module, settings: DataSettings, where: str) -> list[Any]:
    """Cut columns of samples into batches by argument name; arrays without a name are positional.

    Raises:
        SourceError: a name is no argument of the forward, or the columns have different lengths.
    """
    taken, others = arguments_of(model)
    nameless = [name for name in columns if name.startswith("arr_") and name[4:].isdecimal()]
    unknown = [name for name in columns if name not in taken and name not in nameless]
    if unknown and not others:
        raise SourceError(
            f"{where} holds '{unknown[0]}', which is no argument of {type(model).__name__}.forward; it takes "
            f"{', '.join(taken) or 'nothing'}: name the arrays so, as in numpy.savez(file, {next(iter(taken), 'x')}=…)"
        )
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name}: {num}" for name, num in lengths.items())
        raise SourceError(
            f"the arrays of {where} hold different numbers of samples ({said}): the first axis counts them"
        )
    if not lengths or not next(iter(lengths.values())):
        raise SourceError(f"{where} holds no sample")
    for name, column in columns.items():
        if getattr(column, "dtype", None) is not None and column.dtype.kind not in "biufc":
            raise SourceError(f"'{name}' of {where} holds no numbers of one shape in all samples: pad them")
    order = settings.chosen(next(iter(lengths.values())))
    found: list[Any] = []
    for some in settings.batched(order):
        parts = {name: columns[name][some] for name in columns}
        found.append(tuple(parts.values()) if nameless else parts)
    return found


def arguments_of(model: nn.Module) -> tuple[list[str], bool]:
    """Names of the forward's arguments, and whether it takes others, too."""
    parameters = inspect.signature(model.forward).parameters.values()
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return [p.name for p in parameters if p.kind not in fixed], others
