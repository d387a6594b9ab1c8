"""Fuzz plans and manifests: whatever the text, the library answers with a value or with an error of its own.

Runs as it is where atheris is installed; what is new goes into the first folder, the corpus beside it is read:

    mkdir -p out/fuzz && python tests/fuzz_plan.py -artifact_prefix=out/fuzz/ out/fuzz tests/corpus/{plan,manifest}

``test_security.py`` and ``benchmarks/reliability.py`` draw mutations of well-formed texts from here.
"""

from __future__ import annotations

import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

if __name__ == "__main__":  # before anything else imports the package: atheris rewrites what it counts
    import atheris

    with atheris.instrument_imports(include=["layerprune"]):
        import layerprune.checkpoint.manifest  # noqa: F401

from layerprune import PruningPlan, UniversalLayerPruner
from layerprune.checkpoint.manifest import Manifest
from layerprune.errors import LayerPruneError

CORPUS = Path(__file__).parents[1] / "corpus"

NAMES = [
    "", ".", "..", "a", "__class__", "__dict__", "_modules", "forward", "forward.__globals__", "training",
    "0.__class__", "stem.weight", "__init__.__globals__.os", "../../etc/passwd", "/etc/passwd", "a\\b",
    "\0", "os.system", "💥", "x" * 5000,
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]
KINDS = ["delete", "pass", "drop", "guard", "drop_parameter", "slice", "shorten", "take_place", "exec", "__class__"]


class Mixed(nn.Module):
    """A little of all that edits are made for: a residual, a gate, a concat, a parameter, a container."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.up, self.down, self.norm = nn.Linear(6, 8), nn.Linear(8, 6), nn.LayerNorm(6)
        self.gate, self.tail = nn.Linear(6, 6), nn.Linear(6, 6)
        self.left, self.right, self.join = nn.Linear(6, 3), nn.Linear(6, 5), nn.Linear(8, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.down(torch.relu(self.up(self.norm(x)))) * self.scale
        x = x * torch.sigmoid(self.gate(x))
        x = x + self.join(torch.cat([self.left(x), self.right(x)], -1))
        return self.head(self.tail(self.body(x)))


@cache
def bases() -> tuple[tuple[str, nn.Module], ...]:
    """Well-formed plans, and the models that they are for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed()
        pruner = UniversalLayerPruner(model, example_inputs=torch.randn(2, 4), progress=False)
    plans = [pruner.plan(max_param_reduction=share) for share in (0.1, 0.3, 0.5, 0.9)]
    plans += [pruner.plan(groups=[group.name]) for group in pruner.groups if group.can_remove]
    texts = dict.fromkeys(plan.to_json() for plan in plans)
    return tuple((text, model) for text in texts)


# ---- what must hold --------------------------------------------------------------------------------------------------


def check_plan(text: str, model: nn.Module) -> str:
    """Read a plan and carry it out; whatever it says, only an error of the library's own may come of it.

    Returns:
        What came of it: ``"carried out"``, or ``"refused"``.
    """
    imported = set(sys.modules)
    before = sum(parameter.numel() for parameter in model.parameters())
    try:
        plan = PruningPlan.from_json(text)
        str(plan)
        assert PruningPlan.from_json(plan.to_json()).to_json() == plan.to_json()
        pruned = plan.apply(model)
    except LayerPruneError as error:
        if not 0 < len(str(error)) < 20_000:
            raise
        result = "refused"
    else:
        assert sum(parameter.numel() for parameter in pruned.parameters()) == plan.num_params_after
        result = "carried out"
    assert sum(parameter.numel() for parameter in model.parameters()) == before
    assert set(sys.modules) == imported, "a plan imports nothing"
    return result


def check_manifest(text: str) -> str:
    """Read a manifest; it is as it was written, or refused."""
    imported = set(sys.modules)
    try:
        manifest = Manifest.from_json(text)
    except LayerPruneError:
        result = "refused"
    else:
        assert manifest.to_json() == text
        assert not any(set(name) & set("/\\\0") or name.startswith(".") for name in manifest.files)
        result = "read"
    assert set(sys.modules) == imported, "a manifest imports nothing"
    return result


# ---- mutations -------------------------------------------------------------------------------------------------------


def mutated(text: str, rng: random.Random) -> str:
    """Change a JSON text: a few of its values, keys and elements, or a few of its characters."""
    if rng.random() < 0.25:
        return _mutated_text(text, rng)
    data = json.loads(text)
    changed = text
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        try:
            data = _mutated_value(data, rng)
            changed = json.dumps(data)
        except RecursionError:  # json itself writes no more than about a thousand levels
            return "[" * 5_000
    return changed


def _mutated_text(text: str, rng: random.Random) -> str:
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, length = rng.randrange(len(text) + 1), rng.choice([1, 1, 3, 40])
        start, some, rest = text[:at], text[at : at + length], text[at + length :]
        odd = rng.choice(['{"a":', "[", '"', "\\ud800", "1e999", "\x00"]) * rng.choice([1, 2_000])
        other = chr(rng.randrange(0x250)) + some[1:]
        text = start + rng.choice([rest, some + some + rest, other + rest, "", odd + some + rest])
    return text


def _mutated_value(data: Any, rng: random.Random) -> Any:
    places = list(_places(data))
    holder, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0 and isinstance(holder, dict):
        holder[rng.choice(NAMES)] = _anything(rng)
    elif kind == 1:
        del holder[key]
    elif kind == 2:
        other, where = rng.choice(places)
        if key in holder if isinstance(holder, dict) else key < len(holder):
            holder[key] = json.loads(json.dumps(other[where]))
    elif kind == 3 and isinstance(holder, list):
        holder.insert(key, json.loads(json.dumps(holder[key])))
    elif isinstance(holder[key], str) and key == "kind":
        holder[key] = rng.choice(KINDS)
    elif isinstance(holder[key], str):
        holder[key] = rng.choice([*NAMES, holder[key] + ".weight", holder[key][:-1], *_strings(data)])
    elif type(holder[key]) in (int, float):
        holder[key] = rng.choice([*NUMBERS, holder[key] + 1, holder[key] - 1, -holder[key]])
    else:
        holder[key] = _anything(rng)
    return data


def _anything(rng: random.Random) -> Any:
    deep: Any = 0
    for _ in range(rng.choice([3, 150, 400])):
        deep = [deep] if rng.random() < 0.5 else {"tuple": deep}
    return rng.choice([None, True, False, [], {}, deep, [[0, 1]], ["add"], rng.choice(NAMES), rng.choice(NUMBERS)])


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Every place that a JSON value holds something in."""
    found: list[tuple[Any, Any]] = []
    stack = [data]
    while stack:
        value = stack.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            found.append((value, key))
            stack.append(item)
    return found or [({"": data}, "")]


def _strings(data: Any) -> list[str]:
    return [holder[key] for holder, key in _places(data) if isinstance(holder[key], str)][:40]


# ---- atheris ---------------------------------------------------------------------------------------------------------


def one_input(data: bytes) -> None:
    """What atheris calls: the text as it is, as a plan and as a manifest."""
    text = data.decode(errors="surrogateescape")
    for _, model in bases()[:1]:
        check_plan(text, model)
    check_manifest(text)


if __name__ == "__main__":
    bases()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
