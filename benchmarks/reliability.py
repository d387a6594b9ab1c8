"""What survives: saves killed, artefacts and plans mutated, replays compared, random models pruned, threads at once.

``python benchmarks/reliability.py`` goes on where the last run ended: ``out/reliability.json`` holds what was done.
``docs/benchmarks/reliability.md`` is written from it, and says how many of each were run. Counts are arguments:
``--kills 1000 --artefacts 10000 --plans 100000 --replays 20 --graphs 10000 --programs 3000 --threads 8``;
``--only kills plans`` runs some of them, ``--minutes 10`` stops each in time, ``--redo`` starts over.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The graphs, the simulation, the mutations; what replays a plan in another process.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "plan"))

import torch
from rich.console import Console

from survival import artefacts, graphs, kills, plans, programs, replays, threads
from survival.report import as_markdown

ROOT = Path(__file__).resolve().parents[1]
console = Console()

#: Name → the default count, and what runs some more of it.
CHECKS: dict[str, tuple[int, Callable[[int, int], dict[str, Any]]]] = {
    "kills": (1_000, kills.run),
    "artefacts": (10_000, artefacts.run),
    "plans": (100_000, plans.run),
    "replays": (20, replays.run),
    "graphs": (10_000, graphs.run),
    "programs": (3_000, programs.run),
    "threads": (8, threads.run),
}
PIECES = {
    "kills": 50,
    "artefacts": 500,
    "plans": 2_000,
    "replays": 20,
    "graphs": 400,
    "programs": 200,
}  # done before the state is kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, (count, _) in CHECKS.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most for each")
    parser.add_argument("--state", type=Path, default=ROOT / "out" / "reliability.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "reliability.md")
    parser.add_argument("--redo", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    state: dict[str, Any] = json.loads(options.state.read_text()) if options.state.exists() else {}
    for name in options.only:
        if options.redo:
            state.pop(name, None)
        run_check(name, vars(options)[name], options, state)
    options.out.write_text(as_markdown(state), encoding="utf-8")
    return int(any(record["failures"] for record in state.values()))


def run_check(name: str, count: int, options: argparse.Namespace, state: dict[str, Any]) -> None:
    """Run what is left of a check, piece by piece, and keep what came of it after each."""
    record = state.setdefault(name, {"done": 0, "seconds": 0.0, "failures": [], "counts": {}})
    deadline = time.monotonic() + 60 * options.minutes
    while record["done"] < count and time.monotonic() < deadline:
        piece = min(PIECES.get(name, count), count - record["done"])
        start = time.monotonic()
        found = CHECKS[name][1](record["done"], piece)
        record["seconds"] += time.monotonic() - start
        record["failures"] += found.pop("failures")
        record["done"] += piece
        record["date"] = datetime.date.today().isoformat()
        for key, number in found.items():
            record["counts"][key] = record["counts"].get(key, 0) + number
        options.state.parent.mkdir(parents=True, exist_ok=True)
        options.state.write_text(json.dumps(state, indent=1))
    console.print(f"{name}: {record['done']:,} of {count:,}, {len(record['failures'])} failures, {record['counts']}")
    for failure in record["failures"][:5]:
        console.print(f"  {failure}", markup=False)


if __name__ == "__main__":
    raise SystemExit(main())
