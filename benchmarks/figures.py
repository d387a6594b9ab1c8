"""The results of benchmarks as records: ``benchmarks/results/*.json``. The tables of the pages are made of them.

A benchmark that is called with ``--keep`` writes its tables here, and ``python benchmarks/tables.py`` renews the pages.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import rich.table
from pydantic import BaseModel, ConfigDict, Field
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "numpy", "scipy", "torchvision", "timm", "transformers", "torch-pruning", "accelerate", "peft")

Cell = str | int | float | None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Record):
    """When, where and with what a table was measured.

    Attributes:
        date: the day of the run.
        commit: of the code that was measured; empty where it was not noted.
        machine: processor cores and what else ran on them.
        versions: of Python and of packages, as far as they were noted.
        note: how often it was run, or what else a reader has to know.
        provenance: ``measured``: the benchmark wrote the record. ``printed``: the figures were taken over from a page
            that was written by hand, as it stood at ``page_commit``.
        page_commit: the commit of that page.
    """

    date: datetime.date
    commit: str = ""
    machine: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    note: str = ""
    provenance: Literal["measured", "printed"] = "measured"
    page_commit: str = ""

    def __str__(self) -> str:
        versions = [f"{name} {number}" for name, number in self.versions.items() if name in ("torch", "torch-pruning")]
        commit = f"commit {self.commit[:7]}" if self.commit else ""
        page = f"taken over from the page of commit {self.page_commit}" if self.provenance == "printed" else ""
        return ", ".join(part for part in (str(self.date), commit, self.machine, *versions, self.note, page) if part)


class Column(_Record):
    """The head of a column, and a format specification for its numbers, as ``.1%``."""

    title: str
    format: str = ""

    def show(self, cell: Cell) -> str:
        """One cell; texts stand as they are."""
        if cell is None:
            return ""
        return cell if isinstance(cell, str) else format(cell, self.format)


class Table(_Record):
    """A table of a page, and the run that it comes from."""

    run: Run
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def as_markdown(self) -> str:
        """Write the table, and a line that says where it comes from."""
        cells = [[column.title for column in self.columns], ["---"] * len(self.columns)]
        cells += [[c.show(cell) for c, cell in zip(self.columns, row, strict=True)] for row in self.rows]
        padded = [[f" {cell} ".replace("|", "\\|") if cell else " " for cell in row] for row in cells]
        lines = ["|".join(["", *row, ""]) for row in padded]
        return "\n".join([*lines, "", f"*{self.run}.*"])


class Figures(_Record):
    """What one benchmark has found.

    Attributes:
        command: how to measure it again.
        measures: paths of the repository whose changes make the figures old.
        tables: by name.
    """

    command: str
    measures: tuple[str, ...]
    tables: dict[str, Table]


def load(path: Path) -> Figures:
    """Read a results file; what is no such record is an error."""
    return Figures.model_validate_json(path.read_text(encoding="utf-8"))


def save(path: Path, figures: Figures) -> None:
    """Write a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(figures.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")


def add_keep(parser: argparse.ArgumentParser) -> None:
    """Add the option by which a benchmark writes its tables here."""
    parser.add_argument("--keep", action="store_true", help="write the tables to benchmarks/results, for the pages")


def keep(file: str, name: str, table: rich.table.Table | Sequence[Mapping[str, Cell]], note: str = "") -> None:
    """Put a table of this process into ``benchmarks/results/FILE.json``; the other tables of the file stay.

    Args:
        file: a results file that exists: it says what it measures, and by which command.
        name: of the table.
        table: what the console shows, or rows with the same keys.
        note: how often it was run, or what else a reader has to know.
    """
    path = RESULTS / f"{file}.json"
    known = load(path)
    columns, rows = _of_rich(table) if isinstance(table, rich.table.Table) else _of_rows(table)
    fresh = Table(run=this_run(note), columns=tuple(Column(title=title) for title in columns), rows=rows)
    save(path, known.model_copy(update={"tables": {**known.tables, name: fresh}}))


def this_run(note: str = "") -> Run:
    """The run of this process: today, the commit, the machine, and the versions that are installed."""
    torch = sys.modules.get("torch")
    threads = f", {torch.get_num_threads()} threads" if torch else ""
    return Run(
        date=datetime.date.today(),
        commit=_commit(),
        machine=f"{os.cpu_count()} CPU cores{threads}",
        versions={"python": platform.python_version(), **dict(_installed())},
        note=note,
    )


def _of_rich(table: rich.table.Table) -> tuple[list[str], tuple[tuple[Cell, ...], ...]]:
    cells = [[Text.from_markup(str(cell)).plain for cell in column.cells] for column in table.columns]
    return [Text.from_markup(str(column.header)).plain for column in table.columns], tuple(zip(*cells, strict=True))


def _of_rows(rows: Sequence[Mapping[str, Cell]]) -> tuple[list[str], tuple[tuple[Cell, ...], ...]]:
    titles = list(dict.fromkeys(title for row in rows for title in row))
    return titles, tuple(tuple(row.get(title) for title in titles) for row in rows)


def _installed() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _commit() -> str:
    head = _git("rev-parse", "HEAD")
    return head + ("+" if _git("status", "--porcelain", "src") else "") if head else ""


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
