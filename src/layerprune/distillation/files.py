"""Files: tensors and records on disk, each written whole or not at all, and nothing that could run code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    _write(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    _write(path, (json.dumps(record, indent=1) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    """Write beside the file, see that it is on the disk, and put it in the file's place in one step."""
    beside = path.with_name(f".{path.stem}.part{path.suffix}")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # that the name is there, too, after a loss of power
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of tensors: names, shapes, dtypes and values."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        held = tensor.detach().cpu().contiguous()
        found.update(held.reshape(-1).view(torch.uint8).numpy().tobytes() if held.numel() else b"")
    return found.hexdigest()
