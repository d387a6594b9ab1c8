"""What takes long to make is kept in ``.cache/subjects/<name>/``: tensors as safetensors, the recipe as JSON."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "subjects"


@dataclass(frozen=True)
class Made:
    """The weights of a trained model, the data that took long to prepare, and what was measured on the way."""

    state: dict[str, Tensor] = field(default_factory=dict)
    data: dict[str, Tensor] = field(default_factory=dict)
    report: dict[str, float] = field(default_factory=dict)


def cached(name: str, recipe: Mapping[str, Any], make: Callable[[], Made]) -> Made:
    """Return what ``make`` once made by this very recipe, or make it now.

    Args:
        name: the subject; there is one folder for each, so a changed recipe overwrites.
        recipe: all that the result depends on, as JSON can hold it: settings, a version, a fingerprint of the data.
        make: draws random numbers as it likes: the seed is set before, and the caller's generator is left as it was.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    folder = FOLDER / name
    if (folder / "recipe.json").exists():
        about = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        if about["key"] == key:
            state, data = (load_file(folder / f"{part}.safetensors") for part in ("model", "data"))
            return Made(state, data, about["report"])

    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make()
    report = {"seconds": round(time.perf_counter() - start, 1), **made.report}
    made = Made(made.state, made.data, report)
    store(folder, made, {"name": name, "key": key, "recipe": recipe, "report": report})
    return made


def store(folder: Path, made: Made, about: Mapping[str, Any]) -> None:
    """Replace a folder in one step, so that a process that is interrupted leaves the old one or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    for part, tensors in (("model", made.state), ("data", made.data)):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, fresh / f"{part}.safetensors")
    (fresh / "recipe.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def fingerprint(*parts: Tensor | str) -> str:
    """Return a short hash of tensors and texts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
