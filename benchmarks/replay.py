"""What it saves not to run again calls whose inputs did not change: CPU time and peak memory, with and without.

Each run is a fresh process, so that its peak memory is its own; with and without take turns, on one thread. Results
must be the same to the bit. For instance ``python benchmarks/replay.py --models resnet50 --tasks ablation --pairs 3``.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from figures import add_keep, keep

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("vit_b_16", "llama_12", "resnet50")
TASKS = ("planning", "ablation", "default")
WAYS = ("with", "without")
NUM_BATCHES = 2
#: Images or texts of 128 tokens in a batch: ablations run a forward per removal and batch.
SAMPLES = {"planning": 4, "ablation": 1, "default": 1}
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--pairs", type=int, default=2, help="runs with and without; default 2")
    parser.add_argument("--samples", type=int, default=0, help="in a batch; default 4, and 1 where removals are made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--in-this-process", nargs=3, metavar=("MODEL", "TASK", "WAY"), help=argparse.SUPPRESS)
    add_keep(parser)
    options = parser.parse_args()
    if options.in_this_process:
        print(json.dumps(measure(*options.in_this_process, options.samples)))
        return
    jobs = [(name, task) for task in options.tasks for name in options.models]
    rows = [compare(*job, options.pairs, options.samples or SAMPLES[job[1]]) for job in jobs]
    console.print(table_of(rows))
    if options.keep:
        keep("replay", "usual-size", table_of(rows), f"one thread, {options.pairs} pairs of runs each")
    if options.json:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        found = {"commit": git.stdout.strip(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
        options.json.write_text(json.dumps({**found, "rows": rows}, indent=2) + "\n")


# ---- the pairs -------------------------------------------------------------------------------------------------------


def compare(name: str, task: str, num_pairs: int, num_samples: int) -> dict[str, Any]:
    """Run a task with and without in turn, and return the ratios of each pair."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for pair in range(num_pairs):
        for way in WAYS if pair % 2 == 0 else reversed(WAYS):
            command = [sys.executable, __file__, "--samples", str(num_samples), "--in-this-process", name, task, way]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[way].append(json.loads(answer.stdout.splitlines()[-1]))
    ratios = [one["cpu_s"] / other["cpu_s"] for one, other in zip(runs["with"], runs["without"], strict=True)]
    row = {
        "model": name,
        "task": task,
        "batches": [NUM_BATCHES, num_samples],
        "about": runs["with"][0]["about"],
        "cpu_s": {way: [round(run["cpu_s"], 2) for run in runs[way]] for way in WAYS},
        "cpu_ratio": round(statistics.median(ratios), 3),
        "peak_gib": {way: round(statistics.median(run["peak_gib"] for run in runs[way]), 3) for way in WAYS},
        "same_bits": len({run["digest"] for way in WAYS for run in runs[way]}) == 1,
    }
    console.print(row)
    return row


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table("task", "model", "", title="unchanged calls are not run again, against all are run")
    for column in ("CPU s, without", "with", "ratio", "peak GiB, without", "with", "same bits"):
        table.add_column(column, justify="right")
    for row in rows:
        seconds = [f"{statistics.median(row['cpu_s'][way]):.1f}" for way in reversed(WAYS)]
        peaks = [f"{row['peak_gib'][way]:.2f}" for way in reversed(WAYS)]
        same = "yes" if row["same_bits"] else "no"
        table.add_row(row["task"], row["model"], row["about"], *seconds, f"{row['cpu_ratio']:.2f}", *peaks, same)
    return table


# ---- one run ---------------------------------------------------------------------------------------------------------


def measure(name: str, task: str, way: str, num_samples: int) -> dict[str, Any]:
    """Do a task on a model; the clock starts when the model is built and has run once."""
    import torch

    torch.set_num_threads(1)
    if way == "without":
        run_all()
    model, batches = build(name, num_samples or SAMPLES[task])
    with torch.no_grad():
        model(**batches[0]) if isinstance(batches[0], dict) else model(batches[0])
    if task == "planning":
        seconds, found, about = planning(model, batches[0])
    else:
        seconds, found, about = scoring(model, batches, "auto" if task == "default" else task)
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return {"cpu_s": seconds, "peak_gib": peak, "digest": digest, "about": about}


def run_all() -> None:
    """Have every call run, whatever it takes: in ablations, and whole blocks in proofs on fakes."""
    from layerprune.capture.shape_cache import ShapeCache
    from layerprune.replay import reuse

    reuse._why_never = lambda *_: "whole forwards are measured"
    ShapeCache.attach_whole = lambda *_: None


def build(name: str, num_samples: int) -> tuple[Any, list[Any]]:
    """A model of random weights, and batches of images of 224 × 224 or of texts of 128 tokens."""
    sys.path.insert(0, str(ROOT / "tests"))
    from torchvision_ops import declare_missing_ops

    declare_missing_ops()
    import torch
    import torchvision
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if name != "llama_12":
        model = getattr(torchvision.models, name)(weights=None).eval()
        return model, [torch.randn(num_samples, 3, 224, 224) for _ in range(NUM_BATCHES)]
    sizes: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, num_attention_heads=12, **sizes)).eval()
    return model, [
        {"input_ids": torch.randint(0, 8192, (num_samples, 128)), "use_cache": False} for _ in range(NUM_BATCHES)
    ]


def planning(model: Any, batch: Any) -> tuple[float, Any, str]:
    """Groups, removals and proofs, without data; of three rounds the fastest."""
    from layerprune import UniversalLayerPruner

    rounds: list[float] = []
    found: list[list[list[str]]] = []
    for _ in range(3):
        start = time.process_time()
        pruner = UniversalLayerPruner(model, example_inputs=batch, criterion="magnitude")
        rounds.append(time.process_time() - start)
        found.append([[removal.name, *removal.groups, repr(removal.edits)] for removal in pruner.removals])
    return min(rounds), found, f"{len(found[0])} removals"


def scoring(model: Any, batches: list[Any], criterion: str) -> tuple[float, Any, str]:
    """The impacts of all removals on calibration data, and nothing else."""
    from layerprune import UniversalLayerPruner

    pruner = UniversalLayerPruner(model, calibration=batches, criterion=criterion, projections=False, progress=False)
    start = time.process_time()
    removals = pruner.removals
    seconds = time.process_time() - start
    return seconds, [[one.name, one.impact.hex()] for one in removals], f"{len(removals)} removals"


if __name__ == "__main__":
    main()
