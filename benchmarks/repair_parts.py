"""Where the time of a closed-form repair goes, part by part, in units of one plain forward over the calibration data.

CPU time, all in one process: how long a forward takes on a shared machine says nothing by itself. On one thread, unless
asked for more: those that wait for work spin, which counts, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

for folder in ("benchmarks", "tests", "examples"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

# ruff: noqa: E402
import torch
from rich.console import Console
from rich.table import Table

import repair as benchmark
from layerprune import PruningPlan
from layerprune.repair import closed_form, refit, repair
from layerprune.repair import solver as solving
from layerprune.repair.stream.model_run import ModelRun
from subjects import Subject, subject

#: What is timed: owner, function, part.
PARTS = (
    (ModelRun, "next", "both models"),
    (ModelRun, "finish", "both models"),
    (solving.Change, "make", "changes"),
    (closed_form, "judge", "verdict"),
    (solving.Solver, "moved", "distances"),
    (solving.Solver, "sums", "sums"),
    (solving.Solver, "fit", "solves"),
    (closed_form.ClosedFormRepair, "__init__", "recording"),
    (closed_form, "_side", "recording"),
    (closed_form, "find_sites", "sites"),
    (refit, "Lockstep", "shadows"),
)
COLUMNS = list(dict.fromkeys(part for *_, part in PARTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="NAME", help="default: minilm and docs_llama")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--threads", type=int, default=1, help="of torch's")
    parser.add_argument("--batches", type=int, help="calibrate on so many, with some of those held out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("subject", "forward, s", *COLUMNS, "the rest", "all", "all but sums and solves")
    for name in options.subjects or ["minilm", "docs_llama"]:
        of = benchmark.widened(subject(name)) if name == "minilm" else subject(name)
        plan = next(iter(benchmark.CASES[name][0](of).values()))
        if options.batches:
            batches = [*of.calibration, *of.held_out][: options.batches]
            of = replace(of, calibration=batches, calibration_targets=list(map(of.target_of, batches)))
        table.add_row(name, *measure(of, plan, options.rounds))
    Console(width=180).print(table)


def measure(of: Subject, plan: PruningPlan, num_rounds: int) -> list[str]:
    """Medians over some rounds, as cells."""
    forwards: list[float] = []
    rounds: list[dict[str, float]] = []
    for _ in range(num_rounds):
        pruned = plan.apply(of.model)
        forward = benchmark.timed(lambda: of.score(of.model, of.calibration))
        with timing() as spent:
            whole = benchmark.timed(lambda pruned=pruned: repair(of.model, pruned, of.calibration, edits=plan.edits))
        forwards.append(forward)
        rounds.append({part: seconds / forward for part, seconds in spent.items()} | {"all": whole / forward})
    cells = {key: statistics.median(one.get(key, 0.0) for one in rounds) for key in (*COLUMNS, "all")}
    rest = cells["all"] - sum(cells[part] for part in COLUMNS)
    least = cells["all"] - cells["sums"] - cells["solves"]
    shown = [*(cells[part] for part in COLUMNS), rest, cells["all"], least]
    return [f"{statistics.median(forwards):.2f}", *(f"{cell:.2f}" for cell in shown)]


@contextmanager
def timing() -> Generator[dict[str, float]]:
    """The CPU seconds that each part takes of what happens inside, without those of parts within it."""
    spent: dict[str, float] = defaultdict(float)
    inside: list[str] = [""]
    since = time.process_time()

    def switch() -> None:
        nonlocal since
        now = time.process_time()
        spent[inside[-1]] += now - since
        since = now

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            switch()
            inside.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                switch()
                inside.pop()

        return run

    before = [(owner, name, getattr(owner, name)) for owner, name, _ in PARTS]
    try:
        for (owner, name, function), (*_, part) in zip(before, PARTS, strict=True):
            setattr(owner, name, timed(function, part))
        yield spent
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


if __name__ == "__main__":
    main()
