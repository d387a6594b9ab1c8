"""The README and the pages: links, paths and names exist, tables agree with the code, and the README stays short."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from test_house import FLOORS, REPOSITORY, ROOT

import layerprune
from layerprune.cli import app
from layerprune.cli.options import Strategy
from layerprune.distillation import Recipe
from layerprune.export import export_onnx

README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
ARCHITECTURE = DOCS / "internals" / "architecture.md"
EXTENDING = DOCS / "internals" / "extending.md"
COMMAND_LINE = DOCS / "command-line.md"
#: Pages that write keywords of other packages, too.
OF_OTHERS = frozenset(
    {
        *("command-line.md", "export.md", "limits.md", "other-libraries.md", "timm-torchvision.md", "training.md"),
        "transformers.md",
    }
)
USERS = [README, *(page for page in sorted(DOCS.glob("*.md")) if page.name not in OF_OTHERS)]
PAGES = [README, *sorted(DOCS.rglob("*.md"))]

MOST_LINES_OF_THE_README = 120

#: Files of a reader, which the pages take for examples.
FILES_OF_A_READER = frozenset({"mine.py", "path/to/file.py"})

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
OF_THE_REPOSITORY = re.compile(r"(?<![\w./-])(?:src|tests|docs|benchmarks|examples)/[\w./-]*[\w/]")
FILE = re.compile(r"(?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|txt|jsonl|yml)")
IMPORT = re.compile(r"^ *from (layerprune[\w.]*) import (.+)$", re.MULTILINE)


def page_id(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@cache
def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return FENCE.sub("", text)


# ---- links -----------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in HEADING.findall(without_code(text)):
        shown = LINK.sub("", heading).replace("[", "").lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(text: str, page: Path) -> Iterator[str]:
    """The relative links of a page to a file or an anchor that is not there."""
    for link in LINK.findall(without_code(text)):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        if not path.exists() or not path.resolve().is_relative_to(REPOSITORY):
            yield f"{link}: there is no {target}"
        elif anchor and anchor not in anchors(read(path) if target else text):
            yield f"{link}: {page_id(path)} has no heading '{anchor}'"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_and_anchors_exist(page: Path) -> None:
    assert list(broken_links(read(page), page)) == []


def test_a_broken_link_is_found() -> None:
    text = "# One `two`\n[a](docs/none.md) [b](#one-two) [c](#two) [d](docs/guide.md#none) [e](https://pytorch.org)\n"
    found = [fault.partition(":")[0] for fault in broken_links(text, README)]
    assert found == ["docs/none.md", "#two", "docs/guide.md#none"]


def test_every_page_is_linked_from_the_readme_or_from_a_page_that_is() -> None:
    reached, pending = {README}, [README]
    while pending:
        page = pending.pop()
        for link in LINK.findall(without_code(read(page))):
            path = (page.parent / link.partition("#")[0]).resolve()
            if path in PAGES and path not in reached:
                reached.add(path)
                pending.append(path)
    assert [page_id(page) for page in PAGES if page not in reached] == []


# ---- paths and names -------------------------------------------------------------------------------------------------


def missing_paths(text: str, page: Path) -> Iterator[str]:
    """Paths that look like files of the repository, or of the package, and are none."""
    for path in OF_THE_REPOSITORY.findall(LINK.sub("]", text)):
        if not (REPOSITORY / path).exists():
            yield path
    for code in INLINE.findall(without_code(text)):
        path = code.partition(":")[0]
        if not FILE.fullmatch(path) or path in FILES_OF_A_READER or OF_THE_REPOSITORY.fullmatch(path):
            continue
        if not any((folder / path).exists() for folder in (REPOSITORY, ROOT, page.parent)):
            yield path


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_exist(page: Path) -> None:
    assert list(missing_paths(read(page), page)) == []


def test_a_path_of_a_file_that_has_moved_is_found() -> None:
    text = "`graph.py` `graph/layer_graph.py:Layer` `impact/handover.py` `mine.py:batches`\n\n    benchmarks/none.py\n"
    assert list(missing_paths(text, README)) == ["benchmarks/none.py", "graph.py", "impact/handover.py"]


def resolved(dotted: str) -> object:
    """What a dotted name of the library stands for."""
    found: object = layerprune
    name = "layerprune"
    for part in dotted.split(".")[1:]:
        name = f"{name}.{part}"
        if not hasattr(found, part):
            importlib.import_module(name)
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_of_the_library_exist(page: Path) -> None:
    text = read(page)
    names = [name for code in INLINE.findall(text) for name in re.findall(r"\blayerprune(?:\.[a-zA-Z_]\w*)+", code)]
    for module, imported in IMPORT.findall(text):
        names += [f"{module}.{name.strip()}" for name in imported.partition("#")[0].split(",")]
    assert {name for name in names if resolved(name) is None} == set()  # an unknown name raises


def test_identifiers_on_the_pages_on_architecture_occur_in_the_code() -> None:
    code = "\n".join(read(path) for folder in (ROOT, REPOSITORY / "tests") for path in sorted(folder.rglob("*.py")))
    words = set(re.findall(r"\w+", code))
    pages = without_code(read(ARCHITECTURE)) + without_code(read(EXTENDING))
    inline = [text for text in INLINE.findall(pages) if re.fullmatch(r"[\w.]+", text)]
    named = {part for text in inline for part in text.split(".")}
    assert {"Cut", "LayerGraph", "first_valid"} <= named
    assert named - words == set()


def test_keywords_of_the_pages_are_parameters() -> None:
    pruner = layerprune.UniversalLayerPruner
    calls = [
        *(member for name, member in inspect.getmembers(pruner, callable) if not name.startswith("_")),
        *(pruner, layerprune.quick_prune, layerprune.from_hub, layerprune.distill, layerprune.compare, export_onnx),
        *(layerprune.register_op, layerprune.repair, layerprune.load_pruned),
    ]
    known = {name for call in calls for name in inspect.signature(call).parameters} | set(Recipe.model_fields)
    written = {name for page in USERS for name in keywords(read(page))}
    assert {"calibration", "max_param_reduction", "repair", "full"} <= written
    assert written - known == set()


def keywords(text: str) -> Iterator[str]:
    for code in INLINE.findall(without_code(text)):
        yield from re.findall(r"\b([a-z_]+)=", code)


# ---- tables ----------------------------------------------------------------------------------------------------------


def first_cells(text: str, heading: str) -> list[str]:
    """The inline code in the first cells of the first table under a heading, but for its head."""
    _, _, rest = text.partition(f"\n## {heading}\n")
    assert rest, heading
    rows = rest.partition("\n## ")[0].partition("\n|---")[2].splitlines()
    return [found[1] for row in rows if (found := re.match(r"\| `([^`]+)`", row))]


def test_the_floors_of_the_architecture_page_are_those_of_the_test() -> None:
    assert first_cells(read(ARCHITECTURE), "The folders are floors") == list(FLOORS[:-1])  # all but the root itself


def options_of(command: str) -> set[str]:
    """The options of a command, but ``--help``."""
    (params,) = [named.params for name, named in commands() if name == command]
    found = {option for param in params for option in (*param.opts, *param.secondary_opts) if option.startswith("--")}
    return found - {"--help"}


def commands() -> list[tuple[str, Any]]:
    group: Any = typer.main.get_command(app)
    return list(group.commands.items())


def test_the_command_line_page_has_every_option_of_every_command() -> None:
    told: dict[str, set[str]] = {name: set() for name, _ in commands()}
    for option, of in re.findall(r"^\| `(--[\w-]+)` \| ([^|]+) \|", read(COMMAND_LINE), re.MULTILINE):
        for command in INLINE.findall(of):
            told[command].add(option)
    assert told == {name: options_of(name) for name in told}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_calls_from_the_shell_name_commands_and_options_that_exist(page: Path) -> None:
    known = {name: options_of(name) for name, _ in commands()}
    for language, code in FENCE.findall(read(page)):
        for words in [line.split() for line in code.splitlines() if language == "bash"]:
            if words[:1] == ["layerprune"]:
                assert {word for word in words if word.startswith("--")} <= known[words[1]], " ".join(words)


def test_the_strategies_have_a_row_each() -> None:
    assert set(first_cells(read(DOCS / "budgets.md"), "Strategies")) == set(get_args(Strategy))


# ---- the README, and what it leads to --------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert read(README).count("\n") <= MOST_LINES_OF_THE_README


def test_every_public_name_has_its_section_in_the_api() -> None:
    text = "\n".join(read(page) for page in sorted((DOCS / "api").glob("*.md")))
    documented = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    assert {name for name in documented if resolved(name) is None} == set()  # an unknown name raises
    names = {name.rpartition(".")[2] for name in documented}
    assert "layerprune.errors" in documented
    assert set(layerprune.__all__) - names == {"LayerPruneError"}  # it is in the module of errors, which is shown whole
