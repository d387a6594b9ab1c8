"""The results of benchmarks as records: ``benchmarks/results/*.json``. The tables of the pages are made of them.

A benchmark that is called with ``--keep`` writes its tables here, and ``python benchmarks/tables.py`` renews the pages.
"""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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


def keep(name: str, tables: dict[str, Table], command: str, measures: Sequence[str]) -> Path:
    """Put tables into ``benchmarks/results/NAME.json``; those of other names that it holds stay."""
    path = RESULTS / f"{name}.json"
    known = load(path).tables if path.exists() else {}
    save(path, Figures(command=command, measures=tuple(measures), tables={**known, **tables}))
    return path


def this_run(machine: str, note: str = "") -> Run:
    """The run of this process: today, the commit, the versions that are installed."""
    versions = {"python": platform.python_version(), **_installed()}
    return Run(date=datetime.date.today(), commit=_commit(), machine=machine, versions=versions, note=note)


def of_rich(table: Any, run: Run) -> Table:
    """A table of the console as a record: what is printed is what is kept."""
    from rich.text import Text

    columns = [[Text.from_markup(str(cell)).plain for cell in column.cells] for column in table.columns]
    heads = tuple(Column(title=Text.from_markup(str(column.header)).plain) for column in table.columns)
    return Table(run=run, columns=heads, rows=tuple(zip(*columns, strict=True)))


def _installed() -> Iterable[tuple[str, str]]:
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
