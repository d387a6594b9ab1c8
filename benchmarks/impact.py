"""Predicted impact against the truth: rank correlation with what removals do to held-out outputs, alone and in sets.

The truth is ablation on held-out data. Predictions see calibration data only. ``--quick`` tries one small model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

for folder in ("benchmarks", "tests", "examples"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

# ruff: noqa: E402
from torchvision_ops import declare_missing_ops

declare_missing_ops()
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr
from subjects import SUBJECTS, Subject, subject

from layerprune import UniversalLayerPruner
from layerprune.calibration import read_calibration
from layerprune.edits import Edit
from layerprune.impact.ablation import ablate, score_ablation
from layerprune.impact.evidence import Evidence, Scene
from layerprune.impact.harm import Harm
from layerprune.impact.influence import score_influence
from layerprune.impact.magnitude import score_magnitude
from layerprune.impact.output_change import score_output_change
from layerprune.marks import CannotRealise
from layerprune.select.conflicts import conflicts

NUM_SETS = 200
SET_SIZES = range(2, 7)
NUM_HELD_OUT = 6  # batches
COLUMNS = ("single", "sets: sum", "sets: sum of roots", "sets: with pairs")
console = Console()


@dataclass(frozen=True)
class Prediction:
    """What a criterion said: of each removal, and how long it took in plain forwards over the same data."""

    name: str
    evidence: Evidence
    cost: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--sets", type=int, default=NUM_SETS, help=f"random sets per subject (default {NUM_SETS})")
    parser.add_argument("--quick", action="store_true", help="one small model, 20 sets")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    names = ["digits_resnet"] if options.quick else options.subjects or list(SUBJECTS)
    found = {name: measure(subject(name), 20 if options.quick else options.sets) for name in names}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(of: Subject, num_sets: int) -> dict[str, dict[str, float]]:
    """Print and return the correlations of one subject."""
    calibration = read_calibration(of.calibration, of.model)
    held_out = read_calibration(of.held_out[:NUM_HELD_OUT], of.model)
    pruner = UniversalLayerPruner(of.model, example_inputs=of.calibration[0])
    harm = Harm(of.kind)
    scene = Scene(of.model, pruner.graph, pruner.removals, calibration)
    truth = score_ablation(replace(scene, batches=held_out), harm).impacts
    sets, edits = joint_sets(pruner, num_sets)
    together = ablate(replace(scene, batches=held_out), edits, harm).impacts
    table = Table("criterion", title=f"{of.name}: {len(truth)} removals, {len(sets)} sets of 2 to 6, {harm.unit}")
    for column in (*COLUMNS, "cost, forwards"):
        table.add_column(column, justify="right")
    figures: dict[str, dict[str, float]] = {}
    for prediction in predictions(scene, harm):
        impacts = prediction.evidence.impacts
        row = {"single": rank(impacts, truth)}
        row["sets: sum"] = rank([sum(impacts[i] for i in some) for some in sets], together)
        row["sets: sum of roots"] = rank([sum(abs(impacts[i]) ** 0.5 for i in some) for some in sets], together)
        if prediction.evidence.pairs is not None:
            row["sets: with pairs"] = rank([quadratic(prediction.evidence, some) for some in sets], together)
        row["cost, forwards"] = prediction.cost
        figures[prediction.name] = row
        cells = [f"{row[column]:.3f}" if column in row else "" for column in COLUMNS]
        table.add_row(prediction.name, *cells, f"{prediction.cost:.1f}")
    console.print(table)
    return figures


def predictions(scene: Scene, harm: Harm) -> list[Prediction]:
    """Every criterion on the same calibration data, and how many plain forwards each takes."""
    one = replace(scene, batches=scene.batches[:1])
    plain = timed(lambda: ablate(scene, [], harm))[1]
    criteria: dict[str, Callable[[], Evidence]] = {
        "output_change": lambda: score_output_change(scene, harm),
        "output_change, 4 directions": lambda: score_output_change(scene, harm, num_directions=4),
        "influence": lambda: score_influence(scene),
        "magnitude": lambda: score_magnitude(scene),
        "ablation, one batch": lambda: score_ablation(one, harm),
        "ablation": lambda: score_ablation(scene, harm),
    }
    return [made(name, run, plain) for name, run in criteria.items()]


def made(name: str, run: Callable[[], Evidence], plain: float) -> Prediction:
    evidence, seconds = timed(run)
    return Prediction(name, evidence, seconds / plain)


def timed(run: Callable[[], Evidence]) -> tuple[Evidence, float]:
    """What a call returns, and the CPU seconds that it took."""
    start = time.process_time()
    return run(), time.process_time() - start


def joint_sets(pruner: UniversalLayerPruner, num_sets: int) -> tuple[list[tuple[int, ...]], list[Sequence[Edit]]]:
    """Random sets of removals that hold together, and the edits that make each."""
    draw = random.Random(0)
    excluded = set(conflicts(pruner.graph, pruner.removals))
    sets: list[tuple[int, ...]] = []
    edits: list[Sequence[Edit]] = []
    places = range(len(pruner.removals))
    for _ in track(range(20 * num_sets), "drawing sets", console=console, transient=True):
        some = tuple(sorted(draw.sample(places, min(draw.choice(SET_SIZES), len(places)))))
        if len(sets) == num_sets:
            break
        if some in sets or any((a, b) in excluded for a in some for b in some):
            continue
        try:
            edits.append(pruner._planner.joints.proven(some).edits)
        except CannotRealise:
            continue
        sets.append(some)
    return sets, edits


def quadratic(evidence: Evidence, some: tuple[int, ...]) -> float:
    """The estimate of a set by squares and products: ``zᵀQz``."""
    assert evidence.pairs is not None
    return float(sum(evidence.impacts[i] for i in some) + evidence.pairs[np.ix_(some, some)].sum())


def rank(predicted: Sequence[float] | np.ndarray, truth: np.ndarray) -> float:
    return float(spearmanr(predicted, truth).statistic)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
