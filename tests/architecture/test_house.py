"""The house: folders are floors, imports go down through a folder's door, files and functions keep bounds."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "layerprune"
REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "src" / PACKAGE

#: From the ground up: folders, and the files of the package root that sequence the stages.
FLOORS = (
    *("errors", "torch_internals", "environment", "tables", "tensors", "stand_ins", "modules", "graph", "inputs"),
    *("adapters", "capture", "edits", "channels", "surgery", "plan", "removals", "cost", "proof", "fidelity"),
    *("replay", "fitting", "impact", "repair", "select", "export", "checkpoint", "report", "picture"),
    *("distillation", "html", "options", "discovery", "inspection", "scoring", "execute", "planner"),
    *("overview", "pruner", "integrations", "sources", "recipe", "cli", "__main__"),
    "__init__",  # names everything, and imports it lazily
)
MOST_IN_ROOT = 10
MOST_IN_FOLDER = 15
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60


def module_name(path: Path) -> str:
    """``impact/ablation.py`` → ``impact.ablation``, ``impact/__init__.py`` → ``impact``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of each import from the package, wherever in the source, TYPE_CHECKING blocks included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            dotted = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: import by the full name; a relative import hides the folder")
            dotted = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in dotted:
            if module == PACKAGE or module.startswith(f"{PACKAGE}."):
                yield module[len(PACKAGE) + 1 :], name


def floor_of(module: str) -> str:
    """The folder, or the file of the root, that a module lies in."""
    floor = module.partition(".")[0] or "__init__"
    if floor not in FLOORS:
        raise LookupError(f"{module} is on no floor; enter its folder in FLOORS")
    return floor


@cache
def offered(folder: str) -> frozenset[str]:
    """The names that a folder's ``__init__`` imports for others."""
    tree = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))
    return frozenset(alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names)


def faults(source: str, module: str, modules: frozenset[str]) -> list[str]:
    """The imports of a module that go up, or that pass a folder's door by."""
    own = floor_of(module)
    found: list[str] = []
    for base, name in imports(source):
        if not base and name in FLOORS:  # from layerprune import errors
            base, name = name, ""
        target = floor_of(base)
        if target == own:
            continue
        if FLOORS.index(target) > FLOORS.index(own):
            found.append(f"{module} imports {base}.{name}, which lies above it")
        elif "." in base or (f"{base}.{name}" in modules and name not in offered(target)):
            found.append(f"{module} imports {base}.{name} past the door of {target}/__init__.py")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_and_through_the_folders_door(module: str) -> None:
    assert faults(MODULES[module].read_text(encoding="utf-8"), module, frozenset(MODULES)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("graph.groups", "from layerprune.pruner import UniversalLayerPruner"),
        ("graph.groups", "import layerprune.pruner as p"),
        ("graph.groups", "from layerprune import pruner"),
        ("graph.groups", "from layerprune import quick_prune"),
        ("graph.groups", "def f():\n    from layerprune import impact"),
        ("impact.ablation", "if TYPE_CHECKING:\n    from layerprune.pruner import UniversalLayerPruner"),
        ("impact.ablation", "from layerprune.graph.groups import Group"),
        ("impact.ablation", "from layerprune.graph import groups"),
    ],
)
def test_an_import_that_goes_up_or_past_the_door_is_found(module: str, source: str) -> None:
    assert len(faults(source, module, frozenset(MODULES))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("graph.groups", "import torch\nfrom layerprune.errors import LayerPruneError"),
        ("pruner", "from layerprune.impact import score"),
        ("impact.ablation", "from layerprune.impact.scores import ImpactScores\nfrom layerprune.graph import Group"),
        ("__init__", "from layerprune.pruner import quick_prune"),
    ],
)
def test_an_import_downward_of_the_own_folder_or_of_others_passes(module: str, source: str) -> None:
    assert faults(source, module, frozenset(MODULES)) == []


def test_a_module_on_no_floor_fails() -> None:
    with pytest.raises(LookupError, match="helpers is on no floor"):
        faults("", "helpers", frozenset())


def test_the_root_and_its_folders_stay_small() -> None:
    files = Counter(path.parent for path in MODULES.values())
    assert files.pop(ROOT) <= MOST_IN_ROOT
    assert {str(folder.relative_to(ROOT)): n for folder, n in files.items() if n > MOST_IN_FOLDER} == {}


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_keep_to_a_screen(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    assert source.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < MOST_LINES_OF_A_FUNCTION, f"{node.name}, line {node.lineno}"


def test_every_folder_says_what_it_is_for() -> None:
    for path in ROOT.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("folder", sorted({path.parent for path in (REPOSITORY / "tests").rglob("test_*.py")}))
def test_tests_lie_in_folders_of_the_same_names(folder: Path) -> None:
    name = folder.relative_to(REPOSITORY / "tests").as_posix()
    assert (ROOT / name).is_dir() or name in ("architecture", "integration", "oracle", "robustness")


def positional_records(source: str) -> list[str]:
    """Dataclasses of more than four fields that can be built by position."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        marks = [ast.unparse(each) for each in node.decorator_list]
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each)]
        if any(mark.startswith("dataclass") and "kw_only=True" not in mark for mark in marks) and len(fields) > 4:
            found.append(node.name)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_records_of_many_fields_are_built_by_keyword(module: str) -> None:
    assert positional_records(MODULES[module].read_text(encoding="utf-8")) == []


def test_a_record_of_many_fields_that_is_built_by_position_is_found() -> None:
    fields = "\n".join(f"    {letter}: int" for letter in "abcde")
    assert positional_records(f"@dataclass(frozen=True)\nclass Wide:\n{fields}") == ["Wide"]
    assert positional_records(f"@dataclass(kw_only=True)\nclass Wide:\n{fields}") == []
