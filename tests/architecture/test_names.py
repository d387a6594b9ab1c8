"""Names are the field's: no module and no public class goes by a word that was coined here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "src" / "layerprune"

#: Words that had to be explained before they could be read, and what is said in their place.
BANNED = {
    "ahead": "schedule",
    "ban": "exclusion",
    "bits": "identity",
    "caller": "call site",
    "carrying": "execute",
    "company": "interactions",
    "companion": "train graph, derived field",
    "condition": "model state",
    "course": "training state",
    "culprit": "conflict learner",
    "gone": "removed value",
    "guess": "shape guess",
    "handover": "reuse",
    "harm": "divergence",
    "helper": "what it helps with",
    "holding": "activation store",
    "husk": "removed module",
    "joint": "joint removals",
    "journal": "undo log",
    "judging": "verdict",
    "lane": "suspended forward",
    "ledger": "reuse policy",
    "likeness": "reference diff",
    "mark": "rewiring",
    "memo": "shape cache",
    "mender": "repair",
    "meter": "resources",
    "move": "permutation",
    "nested": "containers",
    "onlooker": "observer",
    "outside": "external state",
    "place": "index, slot, location",
    "programme": "milp",
    "realise": "lower",
    "rerun": "index check",
    "retrace": "trace equivalence",
    "round": "sub-batch",
    "scene": "scoring context",
    "shadow": "sandbox",
    "shift": "perturbation",
    "showing": "value location",
    "side": "model run",
    "stray": "implicit input",
    "swap": "local search",
    "taken": "savings",
    "taps": "gradient taps",
    "told": "progress message",
    "trial": "proof run",
    "turn": "process lock",
    "twin": "reference model",
    "upstream": "call reachability",
    "util": "the noun of what is in it",
    "view": "site batch",
    "walk": "lockstep",
    "way": "linear path",
}
#: Whole names in which a banned word is part of a term of the field, or of the public surface.
ALLOWED = {"Guess", "GradientTaps", "JointRemovals", "TakePlace", "gradient_taps", "joint", "shape_guesses"}


def names_of(path: Path) -> list[str]:
    """The module's name, and those of its public classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return [path.stem, *classes]


def banned_in(name: str) -> list[str]:
    """The banned words of a name, be it ``snake_case`` or ``CamelCase``, in the singular or plural."""
    if name in ALLOWED:
        return []
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)]
    return [word for word in words if word in BANNED or word.removesuffix("s") in BANNED]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_public_classes_have_the_fields_names(path: Path) -> None:
    found = {name: [BANNED.get(word, word) for word in banned_in(name)] for name in names_of(path)}
    assert {name: better for name, better in found.items() if better} == {}


@pytest.mark.parametrize("name", ["husks", "Showings", "ShadowRun", "lane_of", "Joints", "OutsideState"])
def test_a_coined_name_is_found(name: str) -> None:
    assert banned_in(name)


@pytest.mark.parametrize(
    "name", ["Sandbox", "layer_graph", "Removal", "Rewiring", "MarkedSaving", "sideways", "viewed"]
)
def test_a_plain_name_passes(name: str) -> None:
    assert banned_in(name) == []
