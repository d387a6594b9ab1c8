"""Kills: a child saves one model over the other without a pause, and dies at a random moment."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from layerprune import load_pruned, save_pruned
from layerprune.errors import LayerPruneError
from survival.models import WIDTH, pruned, same, unpruned


def run(start: int, count: int) -> dict[str, Any]:
    models = [pruned(WIDTH, seed) for seed in range(2)]
    room = Path(tempfile.mkdtemp(prefix="kills"))
    folder = save_pruned(models[0], room / "small")
    found: dict[str, Any] = {"failures": [], "lost": 0, "stray": 0, "left by the dead": 0, "same": 0, "other": 0}
    duration = _duration(models, folder)
    for number in range(start, start + count):
        rng = random.Random(number)
        before = _text(folder)
        child = _saving(models, folder)
        time.sleep(0.01 + rng.random() * 3 * duration)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found["left by the dead"] += len(os.listdir(room)) > 1
        try:
            loaded = load_pruned(folder, factory=lambda: unpruned(WIDTH))
        except LayerPruneError as error:
            found["lost"] += 1
            found["failures"].append(f"kill {number}: {error}")
            save_pruned(models[0], folder)
            continue
        if not any(same(loaded, model) for model in models):
            found["lost"] += 1
            found["failures"].append(f"kill {number}: neither the old nor the new model")
        found["same" if before == _text(folder) else "other"] += 1
        if os.listdir(room) != [folder.name]:
            found["stray"] += 1
            found["failures"].append(f"kill {number}: {sorted(os.listdir(room))}")
    shutil.rmtree(room)
    return found


def _saving(models: list[Any], folder: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            while True:
                for model in reversed(models):
                    save_pruned(model, folder)
        finally:
            os._exit(1)
    return child


def _duration(models: list[Any], folder: Path) -> float:
    start = time.monotonic()
    for model in models:
        save_pruned(model, folder)
    return (time.monotonic() - start) / len(models)


def _text(folder: Path) -> bytes:
    return (folder / "manifest.json").read_bytes()
