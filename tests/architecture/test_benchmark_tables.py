"""The tables of the benchmark pages are those of ``benchmarks/results``; no result is much older than its code."""

from __future__ import annotations

import ast
import datetime
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from test_house import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from figures import RESULTS, Column, Run, Table, load
from menagerie.report import as_markdown
from menagerie.results import Results
from tables import DOCS, renewed, shown, stale_pages

MOST_DAYS = 60
FILES = sorted(RESULTS.glob("*.json"))


def test_the_tables_of_the_pages_are_what_the_results_say() -> None:
    assert [page.name for page, _ in stale_pages()] == [], "python benchmarks/tables.py writes them"


def test_the_page_on_architectures_is_what_the_results_say() -> None:
    text = (DOCS / "zoo.md").read_text(encoding="utf-8")
    assert text == as_markdown(Results(RESULTS / "zoo.jsonl")), "python benchmarks/zoo.py --report-only writes it"


def test_each_table_stands_on_a_page_once() -> None:
    kept = sorted((path.stem, name) for path in FILES for name in load(path).tables)
    assert sorted(found for page in DOCS.rglob("*.md") for found in shown(page.read_text(encoding="utf-8"))) == kept


def last_change(paths: tuple[str, ...]) -> datetime.date | None:
    """The day of the last commit to any of the paths; None without a history."""
    command = ["git", "log", "-1", "--format=%cs", "--", *paths]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return datetime.date.fromisoformat(answer.stdout.strip()) if answer.returncode == 0 and answer.stdout else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_are_not_old(path: Path) -> None:
    found = load(path)
    assert [measured for measured in found.measures if not (REPOSITORY / measured).exists()] == []
    changed = last_change(found.measures)
    if changed is None:
        pytest.skip("no git history")
    old = [name for name, table in found.tables.items() if (changed - table.run.date).days > MOST_DAYS]
    assert old == [], f"measured more than {MOST_DAYS} days before the last change: {found.command}"


def test_a_table_that_differs_and_a_cell_too_many_are_found() -> None:
    (page,) = [page for page in DOCS.rglob("*.md") if ("planning", "torchvision") in shown(page.read_text("utf-8"))]
    text = page.read_text(encoding="utf-8")
    changed = re.sub(r"\| resnet18 \| [\d,]+ \|", "| resnet18 | 1 |", text, count=1)
    assert changed != text
    assert renewed(changed) == text
    run = Run(date=datetime.date(2026, 11, 30))
    with pytest.raises(ValueError, match="argument 2 is"):
        Table(run=run, columns=(Column(title="a"),), rows=((1, 2),)).as_markdown()
    with pytest.raises(ValidationError):
        Run.model_validate({"date": "2026-11-30", "measured_by": "me"})


SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (REPOSITORY / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_what_scripts_import_from_the_library_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "layerprune":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                is_module = (
                    importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
                )
                assert hasattr(module, alias.name) or is_module, f"{node.module} has no {alias.name}"


def test_numbers_are_shown_in_the_format_of_their_column() -> None:
    run = Run(date=datetime.date(2026, 11, 30), commit="0123456789", machine="2 cores", versions={"torch": "2.13.0"})
    columns = (Column(title="model"), Column(title="share", format=".1%"))
    table = Table(run=run, columns=columns, rows=(("a|b", 0.125), ("c", None)))
    assert table.as_markdown().splitlines() == [
        "| model | share |",
        "| --- | --- |",
        "| a\\|b | 12.5% |",
        "| c | |",
        "",
        "*2026-11-30, commit 0123456, 2 cores, torch 2.13.0.*",
    ]
