"""Saves a transformers model without some of its layers in the format of transformers.

Plan and manifest lie beside config, weights and tokenizer, so :func:`load_pruned` loads the folder, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from torch import nn

from layerprune.adapters import builds_from_config
from layerprune.checkpoint.atomic_dir import staged, sync_file
from layerprune.checkpoint.manifest import TensorRecord, path_of
from layerprune.checkpoint.save import check_target, save_pruned, write_manifest
from layerprune.checkpoint.weights import record_tensors
from layerprune.errors import CheckpointError
from layerprune.modules import unwrap
from layerprune.plan import placed_plans
from layerprune.surgery import RefusedSaving

# Not copied from a source: weights, files that the pruned model writes itself, records of other libraries.
_LEFT = (
    *(
        "*.safetensors",
        "*.bin",
        "*.pt",
        "*.pth",
        "*.ckpt",
        "*.h5",
        "*.msgpack",
        "*.ot",
        "*.onnx*",
        "*.gguf",
        "*.tflite",
    ),
    *("*.index.json", "config.json", "generation_config.json", "manifest.json", "plan*.json", "README*", ".*"),
    *("modules.json", "*sentence*.json", "trainer_state.json", "*results.json", "adapter_*"),
)


def is_vanilla(model: nn.Module) -> bool:
    """Whether transformers itself loads the pruned model after saving: only whole layers were removed."""
    model = unwrap(model)
    refused = isinstance(vars(model).get("save_pretrained"), RefusedSaving)
    return builds_from_config(model) and not refused and bool(placed_plans(model))


def save_as_it_came(model: nn.Module, folder: str | Path, *, source: str | None = None) -> Path:
    """Save a pruned model in the format of transformers where possible, else by :func:`save_pruned`."""
    return save_vanilla(model, folder, source=source) if is_vanilla(model) else save_pruned(model, folder)


def save_vanilla(model: nn.Module, folder: str | Path, *, source: str | None = None) -> Path:
    """Save a pruned transformers model in a folder that transformers loads without layerprune.

    The folder holds the files of the model's own ``save_pretrained``, tokenizer or processor of the unpruned model
    (from ``source``, a folder or hub name), the plan and a manifest. It appears when all files are on the disk.

    Raises:
        CheckpointError: transformers would not load the model, or the folder cannot be written.
    """
    model, target = unwrap(model), path_of(folder).absolute()
    if not is_vanilla(model):
        raise CheckpointError(
            f"this {type(model).__name__} is no transformers model that only whole layers left: "
            "call save_pruned(model, folder)"
        )
    saved, record = record_tensors(model)
    check_target(target)
    with staged(target) as staging:
        for path in _files_beside(source):
            shutil.copyfile(path, staging / path.name)
        cast(Any, model).save_pretrained(staging)
        weights = sorted(path.name for path in staging.glob("*.safetensors"))
        files = sorted(path.name for path in staging.iterdir())
        for name in files:
            sync_file(staging / name)
        adapted = _record(saved, record, _names(staging, weights))
        if adapted is not None:
            write_manifest(staging, model, placed_plans(model), weights, files, adapted, {})
    return Path(folder)


def _files_beside(source: str | None) -> Iterator[Path]:
    """Tokenizer or processor files of the unpruned model."""
    if source is None:
        return
    folder = Path(source)
    if not folder.is_dir():
        import huggingface_hub

        try:
            folder = Path(huggingface_hub.snapshot_download(source, ignore_patterns=[*_LEFT, "*/*"]))
        except (OSError, ValueError) as error:  # the hub is out of reach, and its cache is incomplete
            raise CheckpointError(f"the files beside the weights of '{source}' cannot be had: {error}") from error
    for path in sorted(folder.iterdir()):
        if path.is_file() and not any(fnmatchcase(path.name, pattern) for pattern in _LEFT):
            yield path


def _names(folder: Path, weights: list[str]) -> set[str]:
    found: set[str] = set()
    for name in weights:
        with cast(Any, safe_open)(folder / name, framework="pt") as file:
            found.update(file.keys())
    return found


def _record(saved: Collection[str], record: TensorRecord, names: set[str]) -> TensorRecord | None:
    """Adapt the record to the names that transformers chose for tied tensors.

    None where transformers saves tensors under names of an older form of the model, which only transformers can map.
    """
    tied = dict(record.tied)
    for home in set(saved) - names - set(record.transient):
        others = [name for name, first in record.tied.items() if first == home]
        chosen = next((name for name in others if name in names), None)
        if chosen is None:
            return None
        tied |= {name: chosen for name in (home, *others)}
        del tied[chosen]
    known = {*saved, *record.tied, *record.shared}
    return record.model_copy(update={"tied": tied, "order": {}}) if names <= known else None
