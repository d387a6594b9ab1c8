"""Mutated artefacts: one thing about a saved model's files is changed, and loading it must be refused."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerprune import load_pruned, save_pruned
from layerprune.checkpoint import verify
from layerprune.errors import LayerPruneError
from survival.models import pruned, unpruned

WIDTH = 16


def run(start: int, count: int) -> dict[str, Any]:
    room = Path(tempfile.mkdtemp(prefix="artefacts"))
    whole = save_pruned(pruned(WIDTH, 0), room / "whole", max_shard_bytes=2_000)
    found: dict[str, Any] = {"failures": [], "detected": 0}
    for number in range(start, start + count):
        rng = random.Random(number)
        folder = room / "mutated"
        shutil.copytree(whole, folder)
        while True:
            name = rng.choice(list(MUTATIONS))
            MUTATIONS[name](folder, rng.choice(sorted(folder.iterdir())), rng)
            if _contents(folder) != _contents(whole):
                break
        found[name] = found.get(name, 0) + 1
        problem = _problem(folder)
        found["detected"] += not problem
        if problem:
            found["failures"].append(f"artefact {number}, {name}: {problem}")
        shutil.rmtree(folder)
    shutil.rmtree(room)
    return found


def _problem(folder: Path) -> str:
    """What is wrong with how a mutated artefact is met; empty where both doors refuse it."""
    for door in (lambda: load_pruned(folder, factory=lambda: unpruned(WIDTH)), lambda: verify(folder)):
        try:
            door()
        except LayerPruneError:
            continue
        except Exception as error:
            return f"a foreign {type(error).__name__}: {error}"
        return "not noticed"
    return ""


def _contents(folder: Path) -> dict[str, Any]:
    return {p.name: ("link", os.readlink(p)) if p.is_symlink() else p.read_bytes() for p in folder.iterdir()}


def _edit(change: Callable[[bytearray, random.Random], None]) -> Callable[[Path, Path, random.Random], None]:
    def mutate(folder: Path, path: Path, rng: random.Random) -> None:
        data = bytearray(path.read_bytes())
        change(data, rng)
        path.write_bytes(data)

    return mutate


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 9])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at : at + 64] = rng.choice([bytes(64), rng.randbytes(64)])[: len(data) - at]


def _swap(folder: Path, path: Path, rng: random.Random) -> None:
    other = rng.choice(sorted(folder.iterdir()))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def _link(folder: Path, path: Path, rng: random.Random) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(elsewhere)


MUTATIONS: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "bits flipped": _edit(_flip),
    "bytes overwritten": _edit(_overwrite),
    "cut off": _edit(lambda data, rng: data.__delitem__(slice(rng.randrange(len(data)), None))),
    "made longer": _edit(lambda data, rng: data.extend(rng.randbytes(rng.choice([1, 100])))),
    "bytes left out": _edit(lambda data, rng: data.__delitem__(slice(at := rng.randrange(len(data)), at + 3))),
    "file missing": lambda folder, path, rng: path.unlink(),
    "file renamed": lambda folder, path, rng: path.rename(path.with_name(f"{rng.randrange(9)}{path.name}")) and None,
    "file too many": lambda folder, path, rng: shutil.copy(path, path.with_name(f"copy-{path.name}")) and None,
    "files exchanged": _swap,
    "link for a file": _link,
}
