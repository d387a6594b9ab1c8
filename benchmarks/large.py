"""Planning time and memory of large models: Llama-3-8B's and 405B's shapes on the meta device, a net of 1,000 blocks.

Each is planned in a fresh process, so that its peak memory is its own. No weights, no GPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from figures import add_keep, keep

SEQUENCE_LENGTH = 128
MAX_PARAM_REDUCTION = 0.25
TARGET_GIGABYTES = 0.5
#: Models, and how many seconds their plan may take: of the 8B shape by design, of the others "tens of seconds".
TARGET_SECONDS = {"llama-3-8b": 5.0, "llama-3-405b": 60.0, "residual-1000": 30.0}
LLAMA = {
    "llama-3-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama-3-405b": {
        "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
    },
}  # fmt: skip
console = Console()


@dataclass(frozen=True)
class Measurement:
    """What one process measured; ``planning_s`` is all that the constructor does, ``selection_s`` one budget."""

    num_params: int
    num_groups: int
    num_safe_groups: int
    num_removals: int
    planning_s: float
    selection_s: float
    peak_before_bytes: int
    peak_growth_bytes: int

    @property
    def total_s(self) -> float:
        return self.planning_s + self.selection_s


def measure(name: str) -> Measurement:
    """Build a model, then plan it; everything imported is imported before the clock starts."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from torchvision_ops import declare_missing_ops

    declare_missing_ops()
    from layerprune import UniversalLayerPruner

    model, example = residual() if name == "residual-1000" else llama(**LLAMA[name])
    num_params = sum(parameter.numel() for parameter in model.parameters())
    before = peak_bytes()

    start = time.perf_counter()
    pruner = UniversalLayerPruner(model, example_inputs=example)
    groups, removals = pruner.groups, pruner.removals
    planned = time.perf_counter()
    pruner.plan(max_param_reduction=MAX_PARAM_REDUCTION)
    selected = time.perf_counter()
    return Measurement(
        num_params=num_params,
        num_groups=len(groups),
        num_safe_groups=sum(group.can_remove for group in groups),
        num_removals=len(removals),
        planning_s=planned - start,
        selection_s=selected - planned,
        peak_before_bytes=before,
        peak_growth_bytes=peak_bytes() - before,
    )


def llama(**shape: int) -> tuple[Any, Any]:
    """A Llama of some shape without weights, and what it takes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False, **shape)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
        return model, {"input_ids": torch.zeros(1, SEQUENCE_LENGTH, dtype=torch.long)}


def residual(num_blocks: int = 1000, width: int = 64) -> tuple[Any, Any]:
    """A thousand residual blocks in a row, with weights."""
    import torch
    from torch import Tensor, nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.linear(self.norm(x)))

    blocks = [Block() for _ in range(num_blocks)]
    return nn.Sequential(nn.Linear(16, width), *blocks, nn.Linear(width, 4)), torch.randn(2, 16)


def peak_bytes() -> int:
    """The most memory this process has held; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure_in_fresh_process(name: str) -> Measurement:
    command = [sys.executable, __file__, "--in-this-process", name]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Measurement(**json.loads(answer.stdout.splitlines()[-1]))


def table_of(name: str, measured: Measurement) -> Table:
    growth = measured.peak_growth_bytes / 1e9
    table = Table("", title=name)
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("met")
    table.add_row("parameters", f"{measured.num_params:,}")
    table.add_row("groups, safe of all", f"{measured.num_safe_groups} of {measured.num_groups}")
    table.add_row("removals", f"{measured.num_removals:,}")
    table.add_row("capture, groups, removals, proof", f"{measured.planning_s:.2f} s")
    table.add_row(f"selection of {MAX_PARAM_REDUCTION:.0%}", f"{measured.selection_s:.2f} s")
    most = TARGET_SECONDS[name]
    met = yes_or_no(measured.total_s <= most)
    table.add_row("planning in all", f"{measured.total_s:.2f} s", f"≤ {most:g} s", met)
    met = yes_or_no(growth <= TARGET_GIGABYTES)
    table.add_row("growth of peak memory", f"{growth:.2f} GB", f"≤ {TARGET_GIGABYTES:g} GB", met)
    return table


def yes_or_no(met: bool) -> str:
    return "[green]yes[/]" if met else "[red]no[/]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[*TARGET_SECONDS, []], help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--in-this-process", choices=TARGET_SECONDS, help=argparse.SUPPRESS)
    add_keep(parser)
    options = parser.parse_args()
    if options.in_this_process:
        print(json.dumps(asdict(measure(options.in_this_process))))
        return
    found: dict[str, Measurement] = {}
    for name in options.models or TARGET_SECONDS:
        found[name] = measure_in_fresh_process(name)
        console.print(table := table_of(name, found[name]))
        if options.keep:
            keep("large", name, table)
    if options.json:
        options.json.write_text(json.dumps({name: asdict(m) for name, m in found.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
