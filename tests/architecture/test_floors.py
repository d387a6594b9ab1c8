"""The package is a building: a module imports only from floors below its own (DESIGN.md, "The pipeline")."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = "layerprune"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE

# From the ground up. Modules on one floor do not see each other, but for those of one folder (``impact.*``).
FLOORS = (
    ("bits", "callers", "errors", "journal", "members", "nested", "onlookers", "operands", "packages", "turns"),
    ("output_structure", "stand_ins", "supported"),
    (
        *("attributes", "copies", "dropped", "fast_path", "guesses", "integers", "registry"),
        *("reach", "sequences", "signatures", "vacated", "watch"),
    ),
    ("husks", "inputs", "memo", "modules", "outside", "provenance", "strays", "structure", "tensor_keys"),
    ("adapters.*",),
    ("arguments", "shadow", "graph", "holding", "kinds"),
    ("recording",),
    ("recorder", "showings"),
    ("builder",),
    ("alignment", "calibration", "capture", "export"),
    ("finite", "first_recording", "groups", "variants"),
    ("observe", "options", "protection"),
    ("edits",),
    ("readers",),
    ("edit_forms", "projection", "rearrange", "slices"),
    ("channel_rules",),
    ("channels", "elements", "flow", "marks", "surgery", "trace"),
    ("companion", "folds", "merging"),
    ("removals", "realise", "rerun"),
    (
        "cost.*",
        "flow_check",
        "footprint",
        "isolation",
        "joining",
        "narrowing",
        "outputs",
        "places",
        "projections",
        "resolutions",
        "retrace",
        "shorten",
        "sizes",
    ),
    ("trials",),
    ("proof",),
    ("impact.*", "verdicts"),
    ("fidelity.*", "joints", "repair.*"),
    ("rebuilding", "select.*"),
    ("budgets", "plan"),
    ("meter", "report.*"),
    ("carrying", "discovery", "named_groups", "scoring", "unused"),
    ("planning",),
    ("overview",),
    ("checkpoint.*",),
    ("distillation.*",),
    ("pruner",),
    ("sources",),
    ("cli.*",),
    ("__init__",),  # names everything, and imports it lazily
)


def module_name(path: Path) -> str:
    """``impact/influence.py`` → ``impact.influence``, ``impact/__init__.py`` → ``impact.__init__``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def floor_of(module: str) -> tuple[int, str]:
    """The floor that a module is on, and the table's entry for it."""
    for floor, entries in enumerate(FLOORS):
        for entry in entries:
            if fnmatchcase(module, entry):
                return floor, entry
    raise LookupError(f"{module} is on no floor; enter it in FLOORS")


def imports(source: str, module: str) -> Iterator[str]:
    """What a module's source imports from the package, wherever in it, TYPE_CHECKING blocks included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = [PACKAGE, *module.split(".")][: -node.level]
                base = ".".join([*parents, base] if base else parents)
            dotted = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in dotted:
            if name == PACKAGE or name.startswith(f"{PACKAGE}."):
                yield name[len(PACKAGE) + 1 :]


def resolve(name: str, modules: set[str]) -> str:
    """``impact.influence.score`` → the module that holds it; a name of no module is the package's own."""
    parts = name.split(".") if name else []
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for candidate in (prefix, f"{prefix}.__init__"):
            if candidate in modules:
                return candidate
    return "__init__"


def upward(source: str, module: str, modules: set[str]) -> list[str]:
    """The imports of a module that do not go down."""
    floor, entry = floor_of(module)
    found: list[str] = []
    for name in imports(source, module):
        target_floor, target_entry = floor_of(resolve(name, modules))
        neighbours = entry == target_entry and entry.endswith("*")
        if target_floor >= floor and not neighbours:
            found.append(f"{module} (floor {floor}) imports {name} (floor {target_floor})")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    assert upward(MODULES[module].read_text(encoding="utf-8"), module, set(MODULES)) == []


LAYOUT = {"__init__", "errors", "graph", "pruner", "impact.__init__", "impact.influence", "impact.ablation"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("graph", "from layerprune.pruner import UniversalLayerPruner"),
        ("graph", "import layerprune.pruner as p"),
        ("graph", "from layerprune import pruner"),
        ("graph", "from layerprune import quick_prune"),
        ("graph", "from . import pruner"),
        ("graph", "from .impact.influence import score"),
        ("graph", "def f():\n    from layerprune import impact"),
        ("impact.influence", "if TYPE_CHECKING:\n    from ..pruner import UniversalLayerPruner"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert len(upward(source, module, LAYOUT)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("graph", "import torch\nfrom layerprune.errors import LayerPruneError"),
        ("pruner", "from .impact import influence"),
        (
            "impact.influence",
            "from layerprune.impact.ablation import ablate\nfrom . import ablation\nfrom .. import graph",
        ),
        ("__init__", "from layerprune.pruner import quick_prune"),
    ],
)
def test_a_downward_or_foreign_import_passes(module: str, source: str) -> None:
    assert upward(source, module, LAYOUT) == []


def test_a_module_on_no_floor_fails() -> None:
    with pytest.raises(LookupError, match="helpers is on no floor"):
        upward("", "helpers", LAYOUT)
