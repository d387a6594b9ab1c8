"""Writes tensors and JSON records to disk, each whole or not at all, without any executable content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from layerprune.checkpoint.atomic_dir import set_usual_mode, sync_file, sync_folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; views of one memory are copied."""
    held: dict[str, Tensor] = {}
    memories: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        # safetensors refuses tensors that share memory
        held[name] = tensor.clone() if memory.data_ptr() in memories or memory.nbytes() > tensor.nbytes else tensor
        memories.add(memory.data_ptr())
    _write(path, lambda beside: save_file(held, beside))


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    _write(path, lambda beside: beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path``, flush it to the disk, and rename it in one step."""
    beside = path.with_name(f".{path.stem}.part{path.suffix}")
    write(beside)
    set_usual_mode(beside)
    sync_file(beside)
    beside.replace(path)
    sync_folder(path.parent)


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash names, shapes, dtypes and values of tensors (SHA-256)."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        held = tensor.detach().cpu().contiguous()
        found.update(held.reshape(-1).view(torch.uint8).numpy().tobytes() if held.numel() else b"")
    return found.hexdigest()
