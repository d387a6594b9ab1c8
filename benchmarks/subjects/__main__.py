"""Train what the cache does not hold, and print how good each subject is on held-out data.

``python benchmarks/subjects`` makes all; ``python benchmarks/subjects digits_vit`` one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from subjects import SUBJECTS, Subject, subject


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the subjects of the benchmarks, or load what is trained.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--threads", type=int, default=1, help="weights depend on it in their last digits; default: 1")
    options = parser.parse_args()
    unknown = set(options.names) - set(SUBJECTS)
    if unknown:
        parser.error(f"no subject {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    torch.set_num_threads(options.threads)

    table = Table(title="Subjects, scored on held-out data")
    for column in ("subject", "parameters", "calibration", "held out", "metric", "score", "in comparison", "made in"):
        table.add_column(column, justify="left" if column in ("subject", "metric", "in comparison") else "right")
    for name in options.names or SUBJECTS:
        table.add_row(*row_of(subject(name)))
    Console().print(table)


def row_of(made: Subject) -> list[str]:
    others = {name: value for name, value in made.report.items() if name in ("unigram", "bigram")}
    return [
        made.name,
        f"{sum(parameter.numel() for parameter in made.model.parameters()):,}",
        str(sum(len(target) for target in made.calibration_targets)),
        str(sum(len(target) for target in made.held_out_targets)),
        made.metric,
        f"{made.score(made.model):.4f}",
        ", ".join(f"{name} {value:.3f}" for name, value in others.items()),
        f"{made.report['seconds']:.0f} s",
    ]


if __name__ == "__main__":
    main()
