"""The notebooks: Python files in jupytext's percent form, executed by ``make docs``, shown as pages.

``python docs/hooks/notebooks.py [NAME …]`` executes them and writes Markdown and images to ``out/notebooks``. A site
that is built without that shows their code only, and says so.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "docs" / "notebooks"
EXECUTED = ROOT / "out" / "notebooks"
MOST_SECONDS = 300
#: transformers imports torchvision where it finds it, even for text, and fails on one that does not fit torch. Kernels
#: ask for colours, which Markdown cannot show.
_FIRST = """
import os, sys, warnings
warnings.filterwarnings("ignore", message="IProgress not found")
sys.modules["torchvision"] = None
os.environ.pop("FORCE_COLOR", None)
os.environ["NO_COLOR"] = "1"
"""
_NOT_EXECUTED = "*This page was built without running the notebook: outputs are missing.*\n\n"


def names() -> list[str]:
    """The notebooks, by the names of their files."""
    return sorted(path.stem for path in SOURCES.glob("*.py"))


def pages() -> dict[str, str]:
    """The page of each notebook: what it printed where it was executed, else its code."""
    return {f"notebooks/{name}.md": _page(name) for name in names()}


def files() -> dict[str, Path]:
    """The images and reports that executed notebooks have made."""
    images = {path.relative_to(EXECUTED).as_posix(): path for path in sorted(EXECUTED.rglob("*.png"))}
    reports = {path.name: path for path in sorted((EXECUTED / "work").glob("*.html"))}
    return {f"notebooks/{name}": path for name, path in {**images, **reports}.items()}


def _page(name: str) -> str:
    executed = EXECUTED / f"{name}.md"
    if executed.exists():
        return executed.read_text(encoding="utf-8")
    notebook = jupytext.read(SOURCES / f"{name}.py")
    cells = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in notebook.cells
    ]
    title, _, rest = "\n\n".join(cells).partition("\n")
    return f"{title}\n\n{_NOT_EXECUTED}{rest}\n"


def execute(name: str) -> NotebookNode:
    """Run a notebook in a kernel of its own; an error of a cell is an error here."""
    from nbclient import NotebookClient

    notebook = jupytext.read(SOURCES / f"{name}.py")
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells.insert(0, new_code_cell(_FIRST))
    folder = EXECUTED / "work"
    folder.mkdir(parents=True, exist_ok=True)
    NotebookClient(notebook, timeout=MOST_SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    del notebook.cells[0]
    return notebook


def write(name: str, notebook: NotebookNode) -> None:
    """Write an executed notebook as Markdown with its images beside it."""
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    config = Config()
    config.NbConvertBase.display_data_priority = ["text/html", "image/png", "text/markdown", "text/plain"]
    resources = {"unique_key": name, "output_files_dir": f"{name}_files"}
    text, resources = MarkdownExporter(config=config).from_notebook_node(notebook, resources)
    for file, data in resources["outputs"].items():
        (EXECUTED / file).parent.mkdir(parents=True, exist_ok=True)
        (EXECUTED / file).write_bytes(data)
    (EXECUTED / f"{name}.md").write_text(text, encoding="utf-8")


def cpu_seconds() -> float:
    """The time that kernels have spent so far."""
    spent = os.times()
    return spent.children_user + spent.children_system


def main() -> None:
    """Execute the notebooks that are named, or all."""
    for name in sys.argv[1:] or names():
        start, spent = time.monotonic(), cpu_seconds()
        write(name, execute(name))
        print(f"{name}: executed in {time.monotonic() - start:.0f} s, {cpu_seconds() - spent:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
