"""What a choice does to held-out outputs: layerprune's strategies against random, block, sublayer and greedy baselines.

Every method gets the same model, the same calibration data and the same caps, chooses, and is judged by making what it
chose on held-out data. Blocks are coarse and stay far below many caps; so each baseline is set beside what layerprune
chooses when it has to remove at least as much as that baseline did, under the same cap. Where this harms more, the
difference stands there with its 95 % interval, by the paired bootstrap over held-out samples. ``--quick``: one small
model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

for folder in ("benchmarks", "tests", "examples"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

# ruff: noqa: E402
from torchvision_ops import declare_missing_ops

declare_missing_ops()
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from figures import add_keep, keep
from held_out import HeldOut, interval
from impact import score_block_influence
from layerprune import UniversalLayerPruner
from layerprune.capture import read_calibration
from layerprune.cost.layer_costs import macs_by_layer
from layerprune.fidelity import Divergence
from layerprune.impact import ImpactScores, ScoringContext, register_criterion
from layerprune.inputs import Inputs
from layerprune.select import select
from layerprune.tensors import tensors_in
from subjects import SUBJECTS, Subject, subject

#: By cap: what a choice harms and removes, the forwards that it took, and its harm to each held-out sample.
Rows: TypeAlias = list[dict[str, Any]]
Figures: TypeAlias = dict[str, dict[str, Rows]]

SHARES = (0.1, 0.2, 0.3, 0.4)  # of the parameters that can go
NUM_RANDOM = 20
NUM_HELD_OUT = 6  # batches
console = Console(width=150)


@dataclass(frozen=True)
class Method:
    """A way to choose.

    Attributes:
        name: what the table calls it.
        granularity: what it may remove.
        criterion: what it scores by.
        strategy: how it chooses.
        seeds: one run each; the median counts.
    """

    name: str
    granularity: str = "group"
    criterion: str = "auto"
    strategy: str = "auto"
    seeds: Sequence[int] = (0,)


METHODS = (
    Method("layerprune, as it comes"),
    Method("layerprune, exact", strategy="exact"),
    Method("layerprune, quadratic", strategy="quadratic"),
    Method("layerprune, estimates only", criterion="output_change", strategy="exact"),
    Method("layerprune, evolution", strategy="evolution"),
    Method("greedy over all removals", criterion="magnitude", strategy="greedy"),
    Method("SLEB: greedy over blocks", "block", "magnitude", "greedy"),
    Method("ShortGPT: cosine of blocks", "block", "cosine", "exact"),
    Method("LLM-Drop: cosine of sublayers", "branch", "cosine", "exact"),
    Method("magnitude", criterion="magnitude", strategy="exact"),
    Method("random, median of 20", criterion="random", strategy="exact", seeds=range(NUM_RANDOM)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--methods", nargs="+", metavar="TEXT", help="only those whose names hold one of these")
    parser.add_argument("--quick", action="store_true", help="one small model, two shares")
    parser.add_argument("--batches", type=int, metavar="N", help="calibrate on the first N batches only")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write each method's figures there; those it has stay"
    )
    add_keep(parser)
    options = parser.parse_args()
    register_criterion("cosine", score_block_influence)
    register_criterion("random", score_random)
    names = ["digits_resnet"] if options.quick else options.subjects or list(SUBJECTS)
    methods = [m for m in METHODS if not options.methods or any(text in m.name for text in options.methods)]
    figures: Figures = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}

    def note(of: Subject, method: Method, rows: Rows) -> None:
        figures.setdefault(of.name, {})[method.name] = rows
        if options.json:
            options.json.write_text(json.dumps(figures, indent=2) + "\n")

    for name in names:
        of = subject(name)
        of = replace(of, calibration=of.calibration[: options.batches])
        table = measure(of, methods, SHARES[1:3] if options.quick else SHARES, figures.get(name, {}), note)
        if options.keep and not options.quick:
            keep("selection", name, table)


def measure(
    of: Subject,
    methods: Sequence[Method],
    shares: Sequence[float],
    known: dict[str, Rows],
    note: Callable[[Subject, Method, Rows], None],
) -> Table:
    """Print and return what each method's choice does, and how many forwards on calibration batches it took.

    Args:
        of: the subject.
        methods: what chooses.
        shares: caps.
        known: figures of methods that were measured before.
        note: gets those of each other method as soon as they are there.
    """
    ours = UniversalLayerPruner(of.model, calibration=of.calibration, kind=of.kind, progress=False, projections=False)
    prunable = sum(ours._planner.meter.param_pieces.values()) / ours.graph.num_params
    held_out = HeldOut(harm=ours, kept=of.held_out[:NUM_HELD_OUT], kind=Divergence(of.kind))
    unit = held_out.harm.unit
    console.print(f"[bold]{of.name}[/]: {len(ours.removals)} removals, {prunable:.1%} can go; {unit}, held out")
    table = Table("method", *(f"{share:.0%}" for share in shares), "calls of the model", "whole forwards")
    for method in methods:
        caps = [share * prunable for share in shares]
        rows = known.get(method.name) or list(choices(of, method, caps, held_out))
        if method.name not in known:
            note(of, method, rows)
        if not method.name.startswith("layerprune"):
            rows = [{**row, **at_size(ours, row, cap, held_out)} for row, cap in zip(rows, caps, strict=True)]
        cells = [cell(row, prunable) for row in rows]
        calls, whole = (span([row[key] for row in rows]) for key in ("forwards", "whole"))
        table.add_row(method.name, *cells, calls, whole)
        console.print(f"  {method.name}: {', '.join(cells)}; {calls} calls, {whole} whole forwards")
    console.print(table)
    return table


def span(counts: Sequence[float]) -> str:
    """``79``, or ``400 to 792``."""
    return " to ".join(dict.fromkeys((f"{min(counts):.0f}", f"{max(counts):.0f}")))


def cell(row: dict[str, Any], prunable: float) -> str:
    """``0.0042 / 0.0062 (+0.0020 [-0.0004, 0.0043]) at 17%``."""
    beside = f" / {row['ours']:.4f}" if "ours" in row else ""
    if "interval" in row:
        low, high = row["interval"]
        beside += f" ({row['ours'] - row['harm']:+.4f} [{low:.4f}, {high:.4f}])"
    return f"{row['harm']:.4f}{beside} at {row['reduction'] / prunable:.0%}"


def at_size(ours: UniversalLayerPruner, row: dict[str, Any], cap: float, held_out: HeldOut) -> dict[str, Any]:
    """The held-out harm of what layerprune chooses when it has to remove as much as another method did.

    Where that is more, also the interval of the difference; not for several runs, whose median is no choice.
    """
    if not row["reduction"]:
        return {"ours": 0.0}
    total, planner = ours.graph.num_params, ours._planner
    params = replace(planner.meter.params(cap, False), at_least=row["reduction"] * total - 0.5)
    edits = planner.joints.proven(select(planner.problem([params])).chosen).edits
    found: dict[str, Any] = {"ours": held_out.divergence_of(edits)}
    if found["ours"] > row["harm"] and row.get("by_sample"):
        changes, sizes = held_out.by_sample(edits)
        found["interval"] = interval(changes, np.array(row["by_sample"]), sizes)
    return found


def choices(of: Subject, method: Method, caps: Sequence[float], held_out: HeldOut) -> Iterator[dict[str, Any]]:
    """For each cap the held-out harm of what a method chooses, how much that takes, and the forwards for it.

    A forward that is handed outputs of the original's counts by the multiply-accumulates that are left to do.
    """
    pruners: list[tuple[UniversalLayerPruner, int]] = []
    only_blocks = method.granularity == "block"  # also those that vanilla transformers would not load
    for seed in method.seeds:
        options = {
            "granularity": "branch" if only_blocks else method.granularity,
            "criterion": method.criterion,
            "kind": of.kind,
            "seed": seed,
            "progress": False,
        }
        with counted(of) as forwards:
            pruner = UniversalLayerPruner(of.model, calibration=of.calibration, projections=False, **options)
            found = [r for r in pruner._found.removals if r.kind == "block" or not only_blocks]
            pruner._found.removals = found
            _ = pruner.removals
        pruners.append((pruner, forwards[0]))
    shares = shares_of(pruners[0][0], of)
    for cap in caps:
        rows: list[tuple[float, float, float, float]] = []
        for pruner, before in pruners:
            reuse_policy = pruner._planner.scored.scene.reuse_policy
            scored = reuse_policy.handed_on.copy()
            with counted(of) as forwards:
                plan = pruner.plan(max_param_reduction=cap, strategy=method.strategy)
            saved = sum(num * shares.get(frame, 0.0) for frame, num in reuse_policy.handed_on.items()) / samples_of(of)
            reuse_policy.handed_on = scored
            num = before + forwards[0]
            rows.append((held_out.divergence_of(plan.edits), plan.reduction, num, num - saved))
        keys = ("harm", "reduction", "forwards", "whole")
        yield {
            **dict(zip(keys, map(median, zip(*rows, strict=True)), strict=True)),
            "by_sample": [] if len(pruners) > 1 else [float(f"{x:.6g}") for x in held_out.by_sample(plan.edits)[0]],
        }


def shares_of(pruner: UniversalLayerPruner, of: Subject) -> dict[int, float]:
    """Of each call of a module the share of a forward's multiply-accumulates."""
    graph = pruner.graph
    macs = macs_by_layer(pruner._original, graph, read_calibration(of.calibration[:1], of.model)[0].inputs)
    total = sum(macs.values())
    return {frame: sum(macs.get(i, 0.0) for i in layers) / total for frame, layers in graph.layers_inside.items()}


_NUM_SAMPLES = [0]  # a global: what a hook's closure holds is copied along with it


@contextmanager
def counted(of: Subject) -> Iterator[list[float]]:
    """Count forwards on real tensors, those on a part of a batch by its share: hooks come along to every copy of the
    model. The number is there at the end.
    """
    found = [0.0]
    before = _NUM_SAMPLES[0]

    def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors_in((args, kwargs))):
            _NUM_SAMPLES[0] += Inputs(args, kwargs).batch_size or 1

    handle = of.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
        found[0] = (_NUM_SAMPLES[0] - before) / samples_of(of)


def samples_of(of: Subject) -> int:
    """The samples of a calibration batch."""
    return read_calibration(of.calibration[:1], of.model)[0].num_samples


def score_random(scene: ScoringContext) -> ImpactScores:
    """Impacts by chance."""
    change = np.random.default_rng(scene.seed).random((1, len(scene.removals)))
    return ImpactScores(change=change, size=np.ones_like(change), power=1.0, unit="random")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
