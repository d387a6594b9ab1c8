"""The zoo: every architecture of torchvision, timm and transformers, planned; a few hundred of them checked in full.

``python benchmarks/zoo.py`` resumes where the last run ended: what ``benchmarks/results/zoo.jsonl`` holds is not run
again, unless ``--redo`` says so. ``docs/zoo.md`` is written from it. ``--quick`` is what CI runs.
For instance ``python benchmarks/zoo.py --library timm --depth full --models "swin*" --redo all``.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the simulation, and torchvision's operators

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from menagerie import LIBRARIES, catalogue
from menagerie.report import as_markdown
from menagerie.results import FINE, Results, commit, is_failure
from menagerie.runner import Runner
from menagerie.subset import SUBSET
from menagerie.worker import Job

_ROOT = Path(__file__).resolve().parents[1]
_KEPT = _ROOT / "benchmarks/results/zoo.jsonl"
DEPTHS = ("plan", "full")
_QUICK_PLANS = 30  # of each library
console = Console()


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """List what is asked for: plans first, which are quick."""
    found: list[Job] = []
    for library in options.library:
        entries = catalogue(library)
        names = {
            "plan": list(entries),
            "full": [name for name, entry in entries.items() if entry.full is not None],
        }
        if options.quick:
            names["plan"] = names["plan"][:: max(1, len(names["plan"]) // _QUICK_PLANS)][:_QUICK_PLANS]
            names["full"] = [name for name in SUBSET[library] if name in entries]
        found += [Job(library, depth, name, entries[name].family) for depth in options.depth for name in names[depth]]
    wanted = [job for job in found if any(fnmatch(job.name, pattern) for pattern in options.models)]
    return sorted(wanted, key=lambda job: DEPTHS.index(job.depth))


def left(jobs: Sequence[Job], results: Results, redo: str | None) -> list[Job]:
    """Leave out what is known already."""
    if redo == "all":
        return list(jobs)
    again = (lambda row: row["outcome"] not in FINE) if redo == "failed" else (lambda row: False)
    return [job for job in jobs if job.key not in results.rows or again(results.rows[job.key])]


def run(jobs: Sequence[Job], results: Results, options: argparse.Namespace) -> int:
    """Run jobs and note every row at once; returns how many failed."""
    hash_, failures = commit(), 0
    results.begin()
    runner = Runner(options.jobs, options.limit, options.memory)
    with contextlib.closing(runner.run(jobs)) as rows, shown(len(jobs)) as show:
        for job, row in rows:
            row = {
                "library": job.library,
                "depth": job.depth,
                "name": job.name,
                "family": job.family,
                **row,
                "commit": hash_,
            }
            results.add(row)
            failures += is_failure(row)
            show(row, failures)
    return failures


@contextlib.contextmanager
def shown(total: int) -> Iterator[Any]:
    """Show a bar on a terminal, a line per model elsewhere; what failed has its line in either case."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    done = 0
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("no failures", total=total)

        def show(row: dict[str, Any], failures: int) -> None:
            nonlocal done
            done += 1
            name = f"{row['library']} {row['name']} ({row['depth']})"
            line = f"[{done}/{total}] {name}: {row['outcome']}  {row['seconds']:.1f} s"
            if row["outcome"] not in FINE or not console.is_terminal:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
                for check, outcome in row.get("checks", {}).items():
                    if outcome != "ok" and row["outcome"] not in FINE:
                        console.print(f"    {check}: {outcome}", markup=False, highlight=False, soft_wrap=True)
            progress.update(task, advance=1, description=f"{failures} failures, last {row['name']}"[:60])

        yield show


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", nargs="+", choices=DEPTHS, default=list(DEPTHS))
    parser.add_argument("--library", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--models", nargs="+", default=["*"], metavar="PATTERN", help="names to run, as in 'swin*'")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--limit", type=float, default=120, help="seconds per model (default 120)")
    parser.add_argument("--memory", type=float, default=9, help="GiB per worker (default 9)")
    parser.add_argument("--results", type=Path, help="default benchmarks/results/zoo.jsonl; out/zoo.jsonl with --quick")
    parser.add_argument("--redo", choices=("failed", "all"), help="run again what is known already")
    parser.add_argument("--quick", action="store_true", help="what CI runs: a fixed subset in full, some plans")
    parser.add_argument("--report-only", action="store_true", help="write the report from the results, run nothing")
    options = parser.parse_args(arguments)
    options.results = options.results or (_ROOT / "out/zoo.jsonl" if options.quick else _KEPT)
    options.report = _ROOT / "docs/zoo.md" if options.results == _KEPT else options.results.with_suffix(".md")
    return options


def main() -> int:
    options = parse()
    results = Results(options.results)
    failures = 0
    if not options.report_only:
        jobs = left(jobs_of(options), results, options.redo)
        console.print(f"{len(jobs)} models to run, {len(results.rows)} known ({options.results})", highlight=False)
        try:
            failures = run(jobs, results, options) if jobs else 0
        except KeyboardInterrupt:
            console.print("interrupted: the same command goes on from here")
            return 130
        results.settle()
    options.report.write_text(as_markdown(results))
    console.print(f"{failures} failures; report: {options.report}", highlight=False)
    return 1 if failures and options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
