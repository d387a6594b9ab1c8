"""How often the printed 95 % intervals of impacts hold the impact on data that planning has not seen.

    python benchmarks/coverage.py [NAME …] [--draws N] [--batches B …] [--json FILE]

The data of a subject are shuffled and cut into batches of 16. In each draw some batches at random are the calibration
data of a pruner as it comes; the truth is what each removal does on all other batches. Counted are the intervals that a
plan prints: those of removals that were measured on two batches or more. Removals by projection are left out: what they
do on other data is that of another fit. For comparison, from the same batches: the percentiles of a bootstrap over
whole batches, which was printed until November 2026. Figures: docs/benchmarks/impact.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figures import add_keep, keep
from layerprune import UniversalLayerPruner
from subjects import Inputs, Subject, subject

NAMES = ("digits_resnet", "digits_vit", "digits_mobilenet", "minilm")
BATCH_SIZE = 16
MOST_BATCHES = {"minilm": 16}  # of the pool, to measure all removals on
PACKAGES = ("torch", "numpy", "scipy", "timm", "transformers", "scikit-learn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all if none")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8], help="calibration batches in a draw")
    parser.add_argument("--json", type=Path, help="write the counts there")
    add_keep(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for name in options.names or NAMES:
        for row in counted(subject(name), options.draws, options.batches):
            print(
                f"{row['subject']:17} {row['calibration']:>4} samples: {row['held']} of {row['intervals']} hold the "
                f"truth ({row['share']:.1%}); over batches, as before: {row['share_before']:.1%}; "
                f"median width ×{row['width']:.2f}",
                flush=True,
            )
            found.append(row)
            if options.json is not None:
                options.json.write_text(json.dumps({**about(), "rows": found}, indent=2) + "\n", encoding="utf-8")
    if options.keep:
        keep("intervals", "counts", found)


def about() -> dict[str, Any]:
    """When, of which state of the code, and with what."""
    root = Path(__file__).resolve().parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip(),
        "date": date.today().isoformat(),
        "python": sys.version.split()[0],
        "versions": {package: version(package) for package in PACKAGES},
    }


def counted(one: Subject, num_draws: int, sizes: list[int]) -> list[dict[str, Any]]:
    """Count for each size of the calibration data."""
    pool = pool_of(one)
    change, size = by_batch(one, pool)
    rows: list[dict[str, Any]] = []
    for num in sizes:
        held = before = total = 0
        widths: list[float] = []
        for draw in range(num_draws):
            picked = np.random.default_rng([num, draw]).permutation(len(pool))
            seen, others = picked[:num], picked[num:]
            pruner = pruner_of(one, [pool[number] for number in seen], seed=draw)
            truth = change[others].sum(0) / size[others].sum(0)
            drawn = np.percentile(pruner._scored.evidence.resampled(draw), [2.5, 97.5], axis=0)
            for number in range(len(pruner.removals)):
                interval = pruner._planner.interval(number)
                if interval is None:
                    continue
                total += 1
                held += int(interval[0] <= truth[number] <= interval[1])
                before += int(drawn[0, number] <= truth[number] <= drawn[1, number])
                widths.append(interval[1] / max(interval[0], 1e-30))
        rows.append(
            {
                "subject": one.name,
                "calibration": num * BATCH_SIZE,
                "draws": num_draws,
                "intervals": total,
                "held": held,
                "share": held / total,
                "share_before": before / total,
                "width": float(np.median(widths)),
            }
        )
    return rows


def pool_of(one: Subject) -> list[Inputs]:
    """All data in small batches, images shuffled; texts come shuffled, and are padded batch by batch."""
    some = [*one.calibration, *one.held_out]
    if not isinstance(some[0], torch.Tensor):
        return some[: MOST_BATCHES.get(one.name)]
    images = torch.cat(some)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return list(images[order[: len(images) // BATCH_SIZE * BATCH_SIZE]].split(BATCH_SIZE))


def by_batch(one: Subject, pool: list[Inputs]) -> tuple[np.ndarray, np.ndarray]:
    """What every removal does on every batch, and what that is relative to, ``(batch, removal)``."""
    evidence = pruner_of(one, pool, criterion="ablation")._scored.evidence
    return evidence.change, evidence.size


def pruner_of(one: Subject, batches: list[Inputs], **options: Any) -> UniversalLayerPruner:
    return UniversalLayerPruner(
        one.model, calibration=batches, kind=one.kind, projections=False, progress=False, **options
    )


if __name__ == "__main__":
    main()
