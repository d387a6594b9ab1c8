"""The code of every page runs, from top to bottom, on small models.

A page may hold, unseen by readers, ``<!-- setup … -->`` with code that runs where it stands, and
``<!-- not run: WHY -->`` right above a block that cannot run here. A block with ``title="FILE"`` is a file of the
reader: it is written, not run. Commands on a checkpoint of the reader, ``path/to/…``, do not run either.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_house import REPOSITORY
from typer.testing import CliRunner

import layerprune
from layerprune.cli import app
from models.nets import ExampleModel, Photograph, image, randomised

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->$"
    r"|^(?P<why><!-- not run: [^\n]+ -->\n)?"
    r"```(?P<language>python|bash)(?: title=\"(?P<file>[^\"]+)\")?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NOT_OURS = ("pip ", "git ", "make ", "cd ", "#")


@dataclass(frozen=True)
class Block:
    """A piece of a page: code to run, commands, or a file."""

    language: str
    code: str
    file: str | None = None
    runs: bool = True


def blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        if found["setup"] is not None:
            yield Block("python", found["setup"])
        else:
            yield Block(found["language"], found["code"], found["file"], runs=found["why"] is None)


def has_code(page: Path) -> bool:
    return any(block.runs for block in blocks(page.read_text(encoding="utf-8")))


PAGES = [page for page in [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))] if has_code(page)]


def run_commands(code: str) -> None:
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or line.startswith(NOT_OURS) or "path/to" in line:
            continue
        assert words[0] == "layerprune", line
        answer = CliRunner().invoke(app, words[1:])
        assert answer.exit_code == 0, f"{line}\n{answer.output}\n{answer.exception!r}"


@pytest.mark.filterwarnings("ignore::layerprune.errors.ShortfallWarning")  # of networks that have hardly more to give
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_the_code_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    names: dict[str, object] = {"__name__": "page"}
    if page.name == "README.md":
        names["model"] = randomised(ExampleModel())
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.code, encoding="utf-8")
        elif not block.runs:
            compile(block.code, str(page), "exec") if block.language == "python" else None
        elif block.language == "bash":
            run_commands(block.code)
        else:
            exec(compile(block.code, str(page), "exec"), names)


def test_the_readme_leaves_the_model_as_it_was() -> None:
    names: dict[str, object] = {"model": (model := randomised(ExampleModel()))}
    before = Photograph(model)
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for block in blocks(text):
        if block.language == "python":
            exec(block.code, names)
    assert Photograph(model).difference(before) == ""
    assert names["pruned_model"](image(2, size=8)).shape == model(image(2, size=8)).shape


def test_the_criterion_of_the_page_measures_the_share_of_the_parameters() -> None:
    text = (DOCS / "custom-ops.md").read_text(encoding="utf-8")
    code = [block.code for block in blocks(text) if "register_criterion" in block.code]
    names: dict[str, object] = {"model": (model := randomised(ExampleModel()))}
    exec(code[-1], names)
    pruner = names["pruner"]
    assert isinstance(pruner, layerprune.UniversalLayerPruner)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert pruner.removals
    assert [removal.impact for removal in pruner.removals] == [r.num_params / total for r in pruner.removals]


def test_a_block_that_fails_and_a_command_that_does_not_exist_are_found() -> None:
    text = "<!-- setup\nx = 1\n-->\n```python\ny = x + z\n```\n<!-- not run: why -->\n```bash\nrm\n```\n"
    assert [(b.language, b.runs) for b in blocks(text)] == [("python", True), ("python", True), ("bash", False)]
    with pytest.raises(AssertionError):
        run_commands("layerprune nothing\n")
