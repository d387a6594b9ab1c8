"""The results file: one JSON line per model and depth, the last one counts; a line of versions per run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Key = tuple[str, str, str]  # library, depth, name
FINE = ("planned", "ok")
_PACKAGES = ("torch", "torchvision", "timm", "transformers", "layerprune")
_ROOT = Path(__file__).resolve().parents[2]


class Results:
    """What is known so far of every model.

    Attributes:
        rows: (library, depth, name) → the latest row.
        versions: of the packages, in the latest run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Key, dict[str, Any]] = {}
        self.versions: dict[str, str] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                self._take(json.loads(line))
            except json.JSONDecodeError:  # the line that was being written when a run ended
                continue

    def _take(self, row: dict[str, Any]) -> None:
        if "versions" in row:
            self.versions = row["versions"]
        else:
            self.rows[row["library"], row["depth"], row["name"]] = row

    def begin(self) -> None:
        """Note the versions of what is about to run, where they are not those of the run before."""
        if self.versions != versions():
            self._append({"versions": versions()})

    def add(self, row: dict[str, Any]) -> None:
        self._append(row)

    def settle(self) -> None:
        """Write the file anew, sorted, each model once."""
        lines = [{"versions": self.versions}, *(row for _, row in sorted(self.rows.items()))]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(_line(line) for line in lines))
        os.replace(temporary, self.path)

    def _append(self, row: dict[str, Any]) -> None:
        self._take(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ends_open = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a") as file:
            file.write(("\n" if ends_open else "") + _line(row))


def is_failure(row: Mapping[str, Any]) -> bool:
    """Whether a row counts against the library: neither planned nor all checks fine, nor the architecture's fault."""
    return row["outcome"] not in FINE and not row["outcome"].startswith("not built")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The short hash of the tree that runs; ``+`` where ``src`` has changed since."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"
